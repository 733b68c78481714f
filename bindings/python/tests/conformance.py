#!/usr/bin/env python3
"""Prints the lines of tests/common/README.md, computed by jitted, donated JAX steps.

conformance.py                  print them
conformance.py FILE             also compare them with a file; exit 1 if there is a difference
"""

import functools
import hashlib
import json
import sys

import support  # first: it chooses the platform

import jax
import jax.numpy as jnp
import numpy as np
from protocol import SHAPES, print_lines

import lowbit.jax


def optimizer_of(spec, weights):
    """Made by the public constructor, with the hyper-parameters of all cases."""
    options = {"spec": spec, "weights": None if weights == "plain" else weights}
    hyper = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    name = spec["optimizer"]
    if name == "lion":
        hyper.pop("eps")
    elif name == "sgdm":
        hyper = {"momentum": 0.9, "weight_decay": 0.01}
    elif name == "sm3":
        hyper = {"momentum": 0.9 if "m" in spec else None, "weight_decay": 0.01}
    elif name == "adafactor":
        # The cases without options have the paper's: a relative step.
        options["spec"] = {**spec, "adafactor": spec.get("adafactor", {})}
        hyper = {"momentum": 0.9 if "m" in spec else None, "weight_decay_rate": 0.01, "eps": 1e-8}
    return getattr(lowbit.jax, name)(2**-10, **hyper, **options)


def line(case):
    """The line of a line of cases.txt."""
    name, param_dtype, grad_dtype, weights, steps, spec = case.split(" ")
    optimizer = optimizer_of(json.loads(spec), weights)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        return optimizer.apply(grads, state, params)

    params = {f"t{i}": jnp.array(support.param(i, s, param_dtype)) for i, s in enumerate(SHAPES)}
    state = optimizer.init(params)
    for t in range(1, int(steps) + 1):
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
    return f"{name} {digest.hexdigest()}"


if __name__ == "__main__":
    print_lines(line, sys.argv[1:])
