"""What the tests share. Importing it chooses the CPU, as eight devices, and, if none is installed, this
package."""

import importlib.util
import os
import pathlib
import socket
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

ROOT = pathlib.Path(__file__).resolve().parents[3]

if importlib.util.find_spec("lowbit") is None:
    sys.path.insert(0, str(ROOT / "bindings" / "jax"))

import jax.numpy as jnp
import ml_dtypes
import numpy as np

import lowbit

DTYPES = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16": np.dtype(np.float16),
}


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
    """f32, or bf16 or f16 by truncation."""
    bits = values.view(np.uint32)
    if dtype == "bf16":
        values = (bits >> 16).astype(np.uint16).view(DTYPES["bf16"])
    elif dtype == "f16":
        sign, exponent, fraction = bits >> 31 << 15, bits >> 23 & 0xFF, bits >> 13 & 0x3FF
        normal = exponent >= 113
        magnitude = np.where(normal, exponent - 112 << 10 | fraction, 0)
        values = (sign | magnitude).astype(np.uint16).view(DTYPES["f16"])
    return values.reshape(shape)


def param(stream, shape, dtype="f32"):
    """A parameter of tests/common/README.md."""
    index = np.arange(int(np.prod(shape)))
    return _rounded(_number(word(stream, index), -27), dtype, shape)


def grad(stream, shape, dtype="f32"):
    """A gradient of tests/common/README.md."""
    index = np.arange(int(np.prod(shape)))
    h = word(stream, index)
    values = _number(h, -23 - (h & np.uint64(15)).astype(np.int64))
    values[index // 512 % 5 == 4] = 0
    return _rounded(values, dtype, shape)


def reference(spec, params, grads, steps, weights="plain", **arguments):
    """Parameters and states after `steps` equal steps of the scalar reference, by the C ABI.

    params, grads: dicts of numpy arrays.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    tensors = [
        lowbit.Tensor(key, p.shape, names[p.dtype], names[grads[key].dtype], weights)
        for key, p in params.items()
    ]
    plan = lowbit.Plan(spec, tensors, variant="reference")
    params = {key: p.copy() for key, p in params.items()}
    state = plan.zeros()
    for step in range(1, steps + 1):
        plan.step(list(params.values()), list(grads.values()), state, step=step, **arguments)
    return plan, params, state


def state_buffers(plan, state):
    """The buffers of a JAX state in the plan's order, for a dict of parameters."""
    found = []
    for info in plan.buffers:
        moment, part = getattr(state, info.state), info.part
        if info.state == "weights":
            tree = moment
        elif part in ("codes", "scales", "value"):
            tree = moment.codes if part == "codes" else moment.scales
        else:
            names = {"maximum": 0, "rows": 0, "columns": 1, "mean": 2}
            tree = moment.axes[names[part] if part in names else int(part[4:])]
        array = np.asarray(tree[plan.tensors[info.tensor].name])
        # An empty buffer has a dummy in its place.
        found.append(array if np.prod(info.shape) else np.zeros(info.shape, info.numpy_dtype))
    return found


def same(left, right):
    """Whether two arrays have the same dtype, shape and bytes."""
    left, right = np.asarray(left), np.asarray(right)
    return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())


def to_jax(arrays):
    """Copies, so that donation never reaches a numpy array."""
    return {key: jnp.array(array) for key, array in arrays.items()}


def free_port():
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
