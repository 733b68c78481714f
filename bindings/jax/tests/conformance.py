#!/usr/bin/env python3
"""Prints the lines of tests/common/README.md, computed by jitted, donated JAX steps.

conformance.py                  print them
conformance.py FILE             also compare them with a file; exit 1 if any differs
"""

import functools
import hashlib
import pathlib
import sys

import support  # first: it chooses the platform

import jax
import jax.numpy as jnp
import numpy as np

import lowbit.jax

SHAPES = ((1,), (4096,), (4097,), (300, 257), (64, 3, 3, 3), (512, 1024), (2, 3, 5, 7, 11))
PRESETS = ("adamw32", "adamw4", "adamw4-block")
CASES = {"f32": ("f32", "f32"), "bf16": ("bf16", "bf16"), "mixed": ("bf16", "f32")}
STEPS = 10


def line(preset, case):
    param_dtype, grad_dtype = CASES[case]
    optimizer = lowbit.jax.adamw(2**-10, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, spec=preset)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        return optimizer.apply(grads, state, params)

    params = {f"t{i}": jnp.array(support.param(i, s, param_dtype)) for i, s in enumerate(SHAPES)}
    state = optimizer.init(params)
    for t in range(1, STEPS + 1):
        grads = {
            f"t{i}": jnp.array(support.grad(1000 * t + i, s, grad_dtype))
            for i, s in enumerate(SHAPES)
        }
        params, state = step(params, state, grads)
    digest = hashlib.sha256()
    for i in range(len(SHAPES)):
        digest.update(np.asarray(params[f"t{i}"]).tobytes())
    for buffer in support.state_buffers(optimizer.plan(params), state):
        digest.update(buffer.tobytes())
    return f"{preset} {case} {digest.hexdigest()}"


def main(arguments):
    lines = [line(preset, case) for preset in PRESETS for case in CASES]
    print("\n".join(lines))
    for file in arguments:
        expected = pathlib.Path(file).read_text(encoding="utf-8").split("\n")
        different = [found for found in lines if found not in expected]
        if different:
            sys.exit(f"not in {file}:\n" + "\n".join(different))


if __name__ == "__main__":
    main(sys.argv[1:])
