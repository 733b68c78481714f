#!/usr/bin/env python3
"""Continues a trainer of another language in PyTorch, from the folder of tests/common/README.md, or
leaves such a folder.

handover.py FOLDER          print the hash after five steps; exit 1 if it is not the expected
handover.py --write FOLDER  train and leave a folder that others continue from
"""

import hashlib
import json
import pathlib
import sys

import support

import numpy as np
import protocol
import torch

import lowbit.torch as lt

STEPS = 5

HYPER = {"lr": 3e-4, "betas": (0.95, 0.98), "eps": 1e-7, "weight_decay": 0.1}


def digest(optimizer):
    """SHA-256 of the bytes of all parameters, then of all state buffers."""
    hasher = hashlib.sha256()
    (group,) = optimizer.param_groups
    for tensor in (*group["params"], *support.state_tensors(optimizer)):
        hasher.update(support.tensor_bytes(tensor))
    return hasher.hexdigest()


def read(path, shapes):
    """The tensors of a file of concatenated f32 values."""
    values = torch.from_numpy(np.fromfile(path, "<f4"))
    sizes = [int(np.prod(shape)) for shape in shapes]
    if values.numel() != sum(sizes):
        raise ValueError(f"{path} has {values.numel()} values, the tensors {sum(sizes)}")
    return [part.reshape(shape) for part, shape in zip(values.split(sizes), shapes)]


def continued(folder):
    """The hash after five more steps."""
    lines = (folder / "tensors.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split()[0] for line in lines]
    shapes = [tuple(map(int, line.split()[1:])) for line in lines]
    hyper = [float(x) for x in (folder / "hyper.txt").read_text(encoding="utf-8").split()]
    lr, beta1, beta2, eps, weight_decay, grad_scale, clip_factor, skip = hyper
    if skip != 0:
        raise ValueError("a trainer that skips its steps is not continued")
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    params = list(map(torch.nn.Parameter, read(folder / "params.f32", shapes)))
    optimizer = lt.AdamW4bit(
        zip(names, params), lr, (beta1, beta2), eps, weight_decay, spec=spec
    )
    lt.load(folder / "state.safetensors", optimizer)
    for step in range(1, STEPS + 1):
        for param, grad in zip(params, read(folder / f"grad{step}.f32", shapes)):
            # As torch's clipping and unscaling do, which leave a scaled gradient behind.
            param.grad = grad * np.float32(grad_scale) * np.float32(clip_factor)
        optimizer.step()
    return digest(optimizer)


def write(folder):
    """Three steps, a checkpoint, and what another language needs to take the next five."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"wte": (300, 257), "h.0.ln": (64,), "h.0.mlp": (100, 128)}
    params = [support.param(i, shape) for i, shape in enumerate(shapes.values())]
    optimizer = lt.AdamW4bit(zip(shapes, params), **HYPER)
    for step in range(1, 3 + STEPS + 1):
        for i, (param, shape) in enumerate(zip(params, shapes.values())):
            param.grad = support.grad(1000 * step + i, shape)
        if step > 3:
            data = b"".join(support.tensor_bytes(param.grad) for param in params)
            (folder / f"grad{step - 3}.f32").write_bytes(data)
        optimizer.step()
        if step == 3:
            lt.save(folder / "state.safetensors", optimizer)
            data = b"".join(map(support.tensor_bytes, params))
            (folder / "params.f32").write_bytes(data)
    numbers = [HYPER["lr"], *HYPER["betas"], HYPER["eps"], HYPER["weight_decay"], 1.0, 1.0, 0.0]
    spec = optimizer.param_groups[0]["spec"]
    protocol.describe(folder, spec, shapes, numbers, digest(optimizer))


if __name__ == "__main__":
    protocol.hand_over(continued, write, sys.argv[1:], __doc__)
