#!/usr/bin/env python3
"""Continues a trainer of another language in JAX, from the folder of tests/common/README.md, or leaves
such a folder.

handover.py FOLDER          print the hash after five steps; exit 1 if it is not the expected
handover.py --write FOLDER  train and leave a folder that others continue from
"""

import functools
import hashlib
import json
import pathlib
import sys

import support  # first: it chooses the platform

import jax
import jax.numpy as jnp
import numpy as np
import protocol

import lowbit
import lowbit.jax

STEPS = 5

SHAPES = {"wte": (300, 257), "h.0.ln": (64,), "h.0.mlp": (100, 128)}
#: lr, beta1, beta2, eps, weight decay, gradient scale, clip factor, skip.
HYPER = [float(np.float32(x)) for x in (3e-4, 0.95, 0.98, 1e-7, 0.1, 0.5, 0.25, 0)]


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


def trainer(spec, hyper):
    """An optimizer, and a step of it: parameters, state and gradients to parameters and state."""
    lr, b1, b2, eps, weight_decay, grad_scale, clip_factor, skip = hyper
    optimizer = lowbit.jax.adamw(lr, b1, b2, eps, weight_decay, spec=spec)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        return optimizer.apply(
            grads, state, params, grad_scale=grad_scale, clip_factor=clip_factor, skip=skip != 0
        )

    return optimizer, step


def continued(folder):
    """The hash after five more steps."""
    lines = (folder / "tensors.txt").read_text(encoding="utf-8").splitlines()
    tensors = []
    for line in lines:
        name, *extents = line.split()
        tensors.append(lowbit.Tensor(name, tuple(map(int, extents))))
    hyper = [float(x) for x in (folder / "hyper.txt").read_text(encoding="utf-8").split()]
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    optimizer, step = trainer(spec, hyper)
    params = read(folder / "params.f32", tensors)
    state = lowbit.jax.load(folder / "state.safetensors", optimizer, params)
    for t in range(1, STEPS + 1):
        params, state = step(params, state, read(folder / f"grad{t}.f32", tensors))
    buffers = support.state_buffers(lowbit.Plan(spec, tensors), state)
    return digest([params[tensor.name] for tensor in tensors], buffers)


def write(folder):
    """Three steps, a checkpoint, and what another language needs to take the next five."""
    folder.mkdir(parents=True, exist_ok=True)

    def leave(name, arrays):
        (folder / name).write_bytes(b"".join(np.asarray(arrays[key]).tobytes() for key in SHAPES))

    optimizer, step = trainer("adamw4", HYPER)
    params = {key: jnp.array(support.param(i, shape)) for i, (key, shape) in enumerate(SHAPES.items())}
    state = optimizer.init(params)
    for t in range(1, 3 + STEPS + 1):
        grads = {
            key: support.grad(1000 * t + i, shape) for i, (key, shape) in enumerate(SHAPES.items())
        }
        if t > 3:
            leave(f"grad{t - 3}.f32", grads)
        params, state = step(params, state, grads)
        if t == 3:
            lowbit.jax.save(folder / "state.safetensors", optimizer, params, state)
            leave("params.f32", params)
    plan = lowbit.Plan(optimizer.spec, [lowbit.Tensor(*item) for item in SHAPES.items()])
    buffers = support.state_buffers(plan, state)
    expected = digest([params[key] for key in SHAPES], buffers)
    protocol.describe(folder, optimizer.spec.json, SHAPES, HYPER, expected)


if __name__ == "__main__":
    protocol.hand_over(continued, write, sys.argv[1:], __doc__)
