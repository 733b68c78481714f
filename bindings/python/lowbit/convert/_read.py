"""States of other packages, as numpy arrays with their codes."""

import collections
import importlib.util
import math
from typing import Any, NamedTuple

import numpy as np

from ._codes import Codes, Factors, unpack


class Moment(NamedTuple):
    """One state of one tensor.

    values: what it decodes to, in the tensor's shape.
    coded: a Codes or Factors that `values` were decoded from, or None.
    source: for reports: "torchao 4-bit block(128)".
    """

    values: np.ndarray
    coded: Any
    source: str


class Imported(NamedTuple):
    """An optimizer's states.

    shapes: a dict, by name.
    moments: a dict of Moment, by (name, "m"), (name, "v") and, with AMSGrad, (name, "vmax").
        Tensors that were never stepped have none.
    step: steps done.
    groups: a list of dicts: the hyper-parameters of each parameter group, as the source names them.
    group_of: a dict, by name: the index of its group.
    """

    shapes: dict
    moments: dict
    step: int
    groups: list
    group_of: dict


#: Keys of a parameter's state, and the states of lowbit that they are.
_STATES = {
    "exp_avg": "m",
    "exp_avg_sq": "v",
    "max_exp_avg_sq": "vmax",
    "state1": "m",
    "state2": "v",
}

#: Where bitsandbytes puts its tensors so that FSDP does not gather them.
_WRAPPED = "__bnb_optimizer_quant_state__"


def load(path):
    """The state dict in a file of torch.save, on the CPU, by torch.load with weights_only: a file
    that holds anything but tensors and plain values raises an error, and no code of it runs.

    For torchao's states torchao must be installed, which tells torch that they are plain tensors.
    lpmm puts its configuration, an object, beside the states: save them without it, as
    `torch.save({key: d[key] for key in ("state", "param_groups")}, path)`.
    """
    import torch

    if importlib.util.find_spec("torchao"):
        import torchao.optim  # noqa: F401

    return torch.load(path, map_location="cpu", weights_only=True)


def from_torch(state_dict, shapes, *, step=None):
    """Reads the state dict of an optimizer for torch: torch's own Adam and AdamW, torchao's,
    bitsandbytes' or lpmm's. Its tensors may be of torch or of numpy.

    shapes: a dict of the parameters' names and shapes in the order in which the optimizer got them:
        `{name: p.shape for name, p in model.named_parameters()}`. A parameter may also be given as
        one axis, (p.numel(),): then blocks that run across its rows keep their codes.
    step: the number of steps done, where parameters differ in it. lowbit counts one for all.

    Raises ValueError naming the parameter and what is not understood of it.
    """
    shapes = {name: tuple(int(n) for n in shape) for name, shape in shapes.items()}
    names = list(shapes)
    group_of, groups = {}, []
    for group in state_dict["param_groups"]:
        for key in group["params"]:
            group_of[_name(key, names)] = len(groups)
        groups.append({key: _plain(value) for key, value in group.items() if key != "params"})
    moments, steps = {}, {}
    for key, entry in state_dict["state"].items():
        name = _name(key, names)
        entry = {**entry, **entry.get(_WRAPPED, {})}
        if "step" in entry:
            steps[name] = int(_array(entry["step"]).ravel()[0])
        for state, moment in _moments(entry, name, shapes[name]):
            if shapes[name] == (moment.values.size,):
                moment = moment._replace(values=moment.values.reshape(-1))
            if moment.values.shape != shapes[name]:
                raise ValueError(
                    f"state {state} of {name} has shape {moment.values.shape}; its parameter has"
                    f" {shapes[name]}"
                )
            moments[name, state] = moment
    if step is None:
        step = _common(steps)
    return Imported(shapes, moments, step, groups, group_of)


def from_optax(state):
    """Reads the state of an optax optimizer that contains one `scale_by_adam` (or the like: an
    object with count, mu and nu). Tensors are named by their path in the tree, as in `lowbit.jax`.

    Raises ValueError unless there is exactly one.
    """
    import jax

    from .. import jax as binding

    found = list(_adam_states(state))
    if len(found) != 1:
        raise ValueError(f"the state has {len(found)} parts with count, mu and nu; one is needed")
    adam = found[0]
    shapes, moments = {}, {}
    for key, tree in (("m", adam.mu), ("v", adam.nu)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            name = binding.path_name(path)
            values = np.asarray(leaf, np.float32)
            shapes[name] = values.shape
            moments[name, key] = Moment(values, None, f"optax {leaf.dtype}")
    return Imported(shapes, moments, int(adam.count), [{}], dict.fromkeys(shapes, 0))


def _adam_states(state):
    if all(hasattr(state, field) for field in ("count", "mu", "nu")):
        yield state
    elif isinstance(state, dict):
        for part in state.values():
            yield from _adam_states(part)
    elif isinstance(state, (tuple, list)):
        for part in state:
            yield from _adam_states(part)


def _name(key, names):
    """Of a parameter that the dict knows by its number, or by its name (as distributed checkpoints
    do)."""
    if key in names:
        return key
    if key in range(len(names)):
        return names[key]
    raise ValueError(f"parameter {key!r} has no name: {len(names)} shapes are given")


def _common(steps):
    counts = collections.Counter(steps.values())
    if len(counts) > 1:
        examples = {count: name for name, count in steps.items()}
        text = ", ".join(f"{name} {count}" for count, name in sorted(examples.items()))
        raise ValueError(f"parameters differ in their number of steps ({text}): give step")
    return next(iter(counts), 0)


# --- one parameter -------------------------------------------------------------------------------


def _moments(entry, name, shape):
    """Pairs of a state's name and its Moment."""
    if "exp_avg_sq_row" in entry:
        rows, columns = _array(entry["exp_avg_sq_row"]), _array(entry["exp_avg_sq_col"])
        factors = Factors(rows, columns)
        yield "v", Moment(factors.decode(), factors, "lpmm factored")
    for key, state in _STATES.items():
        if key in entry:
            try:
                yield state, _moment(entry, key, shape)
            except ValueError as error:
                raise ValueError(f"{key} of {name}: {error}") from None
    if not any(key in entry for key in (*_STATES, "exp_avg_sq_row")):
        raise ValueError(f"the state of {name} has {sorted(entry)}, of which none is a moment")


def _moment(entry, key, shape):
    value = entry[key]
    if hasattr(value, "full_tensor"):
        raise ValueError("a sharded DTensor: gather the state dict first")
    if hasattr(value, "codes"):
        return _torchao(value, shape, signed=not key.endswith("sq"))
    array = _array(value)
    number = key[-1]
    if array.dtype == np.uint8 and key.startswith("state"):
        return _bitsandbytes(array, entry, number)
    if array.dtype == np.int8:
        return _lpmm(array, entry[f"{key}_qstate"], shape)
    if array.dtype.kind != "f":
        raise ValueError(f"dtype {array.dtype} is not understood")
    package = "bitsandbytes" if key.startswith("state") else "torch"
    if f"{key}_qstate" in entry:
        package = "lpmm"
        if array.size == 1 != math.prod(shape):
            array = np.zeros(shape, np.float32)  # not stepped yet
    return Moment(array, None, f"{package} f32")


def _torchao(value, shape, signed):
    """OptimState4bit, OptimState8bit or OptimStateFp8."""
    codes, scales = _array(value.codes), _array(value.scale).ravel()
    numel = math.prod(shape)
    block = numel // max(scales.size, 1)
    if codes.size not in (numel, numel // 2) or block * scales.size != numel:
        raise ValueError(f"{codes.size} codes and {scales.size} scales of {numel} elements")
    if codes.dtype.kind == "f":
        values = (codes.reshape(-1, block) * scales[:, None]).astype(np.float32).reshape(shape)
        # A table ends at 1, theirs at 448: the division and the product round once each.
        table = _e4m3()
        positions = np.searchsorted(table, codes.ravel()).astype(np.uint8)
        levels, scales = table / np.float32(448), scales * np.float32(448)
        if not signed:
            positions, levels = positions - np.uint8(len(table) // 2), levels[len(table) // 2 :]
        return Moment(values, Codes(8, levels, positions, block, scales), "torchao fp8")
    bits = 8 if codes.size == numel else 4
    if bits == 4:
        codes = unpack(codes, 4, numel, high_first=True)
    coded = Codes.of(bits, _array(value.qmap), codes, block, scales)
    return _decoded(coded, shape, "torchao")


def _e4m3():
    """The finite values of float8_e4m3fn, increasing."""
    exponent, fraction = np.divmod(np.arange(127), 8)  # 127 is NaN
    magnitude = np.where(exponent, 1 + fraction / 8, fraction / 4) * 2.0 ** (exponent - 7)
    return np.unique([-magnitude, magnitude]).astype(np.float32)


def _bitsandbytes(codes, entry, number):
    if f"absmax{number}" not in entry:
        raise ValueError("8 bits without blocks; only block-wise states are read")
    scales = _array(entry[f"absmax{number}"]).ravel()
    sizes = [2**k for k in range(6, 13) if -(-codes.size // 2**k) == scales.size]
    if not sizes:
        raise ValueError(f"{scales.size} scales of {codes.size} elements are no blocks")
    # Of several only if there is one block: all the same then, but for lowbit's rows.
    block = 256 if 256 in sizes else sizes[0]
    coded = Codes.of(8, _array(entry[f"qmap{number}"]), codes, block, scales)
    return _decoded(coded, codes.shape, "bitsandbytes")


def _lpmm(packed, qstate, shape):
    """Of the package's normalizations: group, rank-1 and tensor."""
    if qstate["qmap"] is None:
        raise ValueError("quant_type linear, which has no table, is not read")
    overhead, table = qstate["overhead"], _array(qstate["qmap"])
    bits = (len(table) - 1).bit_length()
    numel = math.prod(shape)
    if bits in (2, 4):
        codes = unpack(packed, bits, numel)
    else:
        codes = packed.view(np.uint8).ravel()[:numel]
    scaled = overhead.get("scaled_shape")
    if overhead.get("max_dims") is not None:
        block, scales = None, tuple(_array(x).ravel() for x in overhead["max_dims"])
    elif overhead.get("max1") is None:
        raise ValueError(f"no scales are among {sorted(overhead)}")
    else:
        scales = _array(overhead["max1"]).ravel()
        if scaled is None:
            block = 128  # the fused kernel's
        elif tuple(scaled) == shape and scales.size == 1:
            block = numel
        else:
            block = int(scaled[-1])
    return _decoded(Codes.of(bits, table, codes, block, scales), shape, "lpmm")


def _decoded(coded, shape, package):
    return Moment(coded.decode(shape), coded, f"{package} {coded.describe()}")


def _array(value):
    """A numpy array of an array or tensor; narrow floats become f32, which holds them exactly."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.is_floating_point() and value.itemsize < 4:
            value = value.float()
        return value.numpy()
    return np.asarray(value)


def _plain(value):
    """A hyper-parameter as Python's own number, if it is one."""
    return value.item() if hasattr(value, "item") else value
