#!/usr/bin/env python3
"""Continues a trainer of another language in JAX, from the folder of tests/common/README.md.

handover.py FOLDER          print the hash after five steps; exit 1 if it is not the expected
"""

import functools
import hashlib
import json
import sys

import support  # first: it chooses the platform

import jax
import jax.numpy as jnp
import numpy as np
import protocol

import lowbit
import lowbit.jax

STEPS = 5


def digest(params, state):
    """SHA-256 of the bytes of all parameters, then of all state buffers."""
    hasher = hashlib.sha256()
    for array in (*params, *state):
        hasher.update(np.asarray(array).tobytes())
    return hasher.hexdigest()


def read(path, tensors):
    """The tensors of a file of concatenated f32 values, as a dict."""
    values = np.fromfile(path, "<f4")
    ends = np.cumsum([int(np.prod(tensor.shape)) for tensor in tensors])
    if values.size != ends[-1]:
        raise ValueError(f"{path} has {values.size} values, the tensors {ends[-1]}")
    parts = np.split(values, ends[:-1])
    return {t.name: jnp.array(part.reshape(t.shape)) for t, part in zip(tensors, parts)}


def continued(folder):
    """The hash after five more steps."""
    lines = (folder / "tensors.txt").read_text(encoding="utf-8").splitlines()
    tensors = []
    for line in lines:
        name, *extents = line.split()
        tensors.append(lowbit.Tensor(name, tuple(map(int, extents))))
    hyper = [float(x) for x in (folder / "hyper.txt").read_text(encoding="utf-8").split()]
    lr, b1, b2, eps, weight_decay, grad_scale, clip_factor, skip = hyper
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    optimizer = lowbit.jax.adamw(lr, b1, b2, eps, weight_decay, spec=spec)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        return optimizer.apply(
            grads, state, params, grad_scale=grad_scale, clip_factor=clip_factor, skip=skip != 0
        )

    params = read(folder / "params.f32", tensors)
    state = lowbit.jax.load(folder / "state.safetensors", optimizer, params)
    for t in range(1, STEPS + 1):
        params, state = step(params, state, read(folder / f"grad{t}.f32", tensors))
    buffers = support.state_buffers(lowbit.Plan(spec, tensors), state)
    return digest([params[tensor.name] for tensor in tensors], buffers)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    protocol.print_hash(continued, sys.argv[1])
