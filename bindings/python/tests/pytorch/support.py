"""What the tests share. Importing it finds, if none is installed, this tree's package."""

import importlib.util
import math
import pathlib
import sys
import unittest

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[4]

if importlib.util.find_spec("lowbit") is None:
    sys.path.insert(0, str(ROOT / "bindings" / "python"))
sys.path.insert(0, str(ROOT / "tests" / "common"))

import protocol

#: torch's version, as (2, 4).
VERSION = tuple(map(int, torch.__version__.split(".")[:2]))


def needs(major, minor, what):
    """Marks tests of what older versions of torch lack."""
    return unittest.skipIf(VERSION < (major, minor), f"before torch {major}.{minor}: {what}")


DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def _tensor(values, shape, dtype):
    """A tensor of an array of tests/common/protocol.py."""
    if dtype != "f32":
        values = values.view(np.int16)
    return torch.from_numpy(values.reshape(shape)).view(DTYPES[dtype])


def param(stream, shape, dtype="f32"):
    """A parameter of tests/common/README.md."""
    values = protocol.param(stream, math.prod(shape), dtype)
    return torch.nn.Parameter(_tensor(values, shape, dtype))


def grad(stream, shape, dtype="f32"):
    """A gradient of tests/common/README.md."""
    return _tensor(protocol.grad(stream, math.prod(shape), dtype), shape, dtype)


def tensor_bytes(tensor):
    """The bytes of a tensor on the CPU."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def state_tensors(optimizer):
    """All states of an optimizer in the library's order: parameter by parameter."""
    return [state[key] for batch in optimizer.batches() for state, key in batch.slots]


def snapshot(optimizer):
    """Copies of all parameters and states, to be compared by `same`."""
    found = {}
    names = optimizer.names()
    for group in optimizer.param_groups:
        for p in group["params"]:
            found[names[id(p)]] = p.detach().clone()
            for key, value in optimizer.state.get(p, {}).items():
                found[names[id(p)], key] = value.clone()
    return found


def same(left, right):
    """Whether two snapshots have the same keys, dtypes, shapes and bytes."""
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype
        and left[key].shape == right[key].shape
        and tensor_bytes(left[key]) == tensor_bytes(right[key])
        for key in left
    )


def model(seed=0, dtype=torch.float32):
    """A small model with a quantized matrix and float32 states beside it."""
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(96, 80), torch.nn.Tanh(), torch.nn.Linear(80, 10)]
    return torch.nn.Sequential(*layers).to(dtype)


def train(net, optimizer, steps, begin=0):
    """Steps on made-up batches that depend on their number alone; returns the losses."""
    losses = []
    dtype = next(net.parameters()).dtype
    for step in range(begin, begin + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 96, generator=generator).to(dtype)
        target = torch.randint(10, (16,), generator=generator)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x).float(), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
