"""What the tests share. Importing it finds, if none is installed, this tree's package."""

import importlib.util
import pathlib
import sys

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[3]

if importlib.util.find_spec("lowbit") is None:
    sys.path.insert(0, str(ROOT / "bindings" / "jax"))

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def word(stream, index):
    """`word` of tests/common/README.md, for an array of indices."""
    with np.errstate(over="ignore"):
        x = np.uint64(stream << 40) + index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _number(h, exponent):
    n = (h >> np.uint64(40)).astype(np.int64) - (1 << 23)
    return np.ldexp(n.astype(np.float64), exponent).astype(np.float32)


def _rounded(values, dtype, shape):
    """f32, or bf16 or f16 by truncation, as a tensor."""
    bits = values.view(np.uint32)
    if dtype == "bf16":
        halves = (bits >> 16).astype(np.uint16)
    elif dtype == "f16":
        sign, exponent, fraction = bits >> 31 << 15, bits >> 23 & 0xFF, bits >> 13 & 0x3FF
        magnitude = np.where(exponent >= 113, exponent - 112 << 10 | fraction, 0)
        halves = (sign | magnitude).astype(np.uint16)
    else:
        return torch.from_numpy(values.reshape(shape))
    return torch.from_numpy(halves.view(np.int16).reshape(shape)).view(DTYPES[dtype])


def param(stream, shape, dtype="f32"):
    """A parameter of tests/common/README.md."""
    index = np.arange(int(np.prod(shape)))
    return torch.nn.Parameter(_rounded(_number(word(stream, index), -27), dtype, shape))


def grad(stream, shape, dtype="f32"):
    """A gradient of tests/common/README.md."""
    index = np.arange(int(np.prod(shape)))
    h = word(stream, index)
    values = _number(h, -23 - (h & np.uint64(15)).astype(np.int64))
    values[index // 512 % 5 == 4] = 0
    return _rounded(values, dtype, shape)


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
