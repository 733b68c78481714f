"""What the tests share. Importing it chooses the CPU, as eight devices, and, if none is installed, this
package."""

import importlib.util
import math
import os
import pathlib
import socket
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

ROOT = pathlib.Path(__file__).resolve().parents[3]

if importlib.util.find_spec("lowbit") is None:
    sys.path.insert(0, str(ROOT / "bindings" / "python"))
sys.path.insert(0, str(ROOT / "tests" / "common"))

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import protocol

import lowbit

DTYPES = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16": np.dtype(np.float16),
}


def param(stream, shape, dtype="f32"):
    """A parameter of tests/common/README.md."""
    return protocol.param(stream, math.prod(shape), dtype).view(DTYPES[dtype]).reshape(shape)


def grad(stream, shape, dtype="f32"):
    """A gradient of tests/common/README.md."""
    return protocol.grad(stream, math.prod(shape), dtype).view(DTYPES[dtype]).reshape(shape)


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
