"""lowbit's states as those of other packages."""

import math
from typing import NamedTuple

import numpy as np

from . import _codes

#: Of `torch.optim.AdamW`.
_DEFAULTS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}

_KEYS = {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}


def to_torch(plan, state, step, groups=None, *, tensor=None):
    """The state dict of a `torch.optim.AdamW` (or Adam) over the plan's tensors in their order.
    States are decoded to f32.

    state: the plan's arrays after `step` steps.
    groups: for each group of the plan a dict of hyper-parameters as torch names them (lr, betas,
        eps, weight_decay, ...). None: torch's defaults. `Imported.groups` fits.
    tensor: what makes a tensor of a numpy array. None: torch does.
    """
    tensor = tensor or _torch_tensor()
    moments = _decoded(plan, state)
    entries = {
        i: {
            "step": tensor(np.array(step, np.float32)),
            **{_KEYS[name]: tensor(values[i]) for name, values in moments.items()},
        }
        for i in range(len(plan.tensors))
    }
    return {"state": entries, "param_groups": _groups(plan, groups, "vmax" in moments)}


def to_torchao(plan, state, step, groups=None, *, tensor=None, wrap=None):
    """The state dict of torchao's `AdamW4bit` or `AdamW8bit`. States in full blocks of 4 or 8 bits
    keep their codes, scales and table; all others become f32 tensors, as torchao keeps what it does
    not quantize.

    wrap: what makes torchao's object of codes, scale, qmap (tensors), signed, shape and bits. None:
        torchao does.
    """
    tensor, wrap = tensor or _torch_tensor(), wrap or _torchao_state
    dictionary = to_torch(plan, state, step, groups, tensor=tensor)
    for kept in _coded(plan, state):
        shape, codes = plan.tensors[kept.tensor].shape, kept.codes
        block, rest = divmod(codes.size, max(np.size(kept.scales.get("scales")), 1))
        if rest or not kept.is_flat(block) or kept.bits not in (4, 8):
            continue
        codes = codes[::2] << 4 | codes[1::2] if kept.bits == 4 else codes.reshape(shape)
        parts = map(tensor, (codes, kept.block_scales(), kept.levels))
        wrapped = wrap(*parts, kept.state == "m", shape, kept.bits)
        dictionary["state"][kept.tensor][_KEYS[kept.state]] = wrapped
    for group in dictionary["param_groups"]:
        group["lr"] = tensor(np.array(group["lr"], np.float32))  # which torchao insists on
    return dictionary


def to_bitsandbytes(plan, state, step, groups=None, *, tensor=None):
    """The state dict of bitsandbytes' `AdamW8bit`. Tensors whose m and v are both in 8 bits and in
    blocks of 256 keep codes, scales and table; all others become f32.

    It also fits an `AdamW` of bitsandbytes in 32 bits if nothing is in 8.
    """
    tensor = tensor or _torch_tensor()
    moments = _decoded(plan, state)
    entries = [
        {
            "step": step,
            "state1": tensor(moments["m"][i]),
            "state2": tensor(moments["v"][i]),
        }
        for i in range(len(plan.tensors))
    ]
    coded = {}
    for kept in _coded(plan, state):
        if kept.bits == 8 and kept.is_flat(256) and kept.state in ("m", "v"):
            number = "1" if kept.state == "m" else "2"
            coded.setdefault(kept.tensor, {}).update(
                {
                    f"state{number}": tensor(kept.codes.reshape(plan.tensors[kept.tensor].shape)),
                    f"absmax{number}": tensor(kept.block_scales()),
                    f"qmap{number}": tensor(kept.levels),
                }
            )
    for i, parts in coded.items():
        if len(parts) == 6:
            entries[i].update(parts)
    return {"state": dict(enumerate(entries)), "param_groups": _groups(plan, groups, False)}


def to_lpmm(plan, state, step, groups=None, *, qconfig=None, tensor=None):
    """The state dict of lpmm's `AdamW` (the authors' code of the paper). States of 2, 4 or 8 bits
    keep codes, table and scales if these are rank-1, or of blocks that are also blocks when counted
    through the whole tensor; means over the last two axes stay factors; all others become f32.

    qconfig: `optimizer.qconfig` of the optimizer that loads it. The package takes bits and
        normalizations from there, so they have to be those of the states.
    """
    if tensor is None:
        import torch

        tensor, dtype = _torch_tensor(), torch.float32
    else:
        dtype = np.float32
    moments = _decoded(plan, state)
    parts = _parts(plan, state)
    coded = {(kept.tensor, kept.state): kept for kept in _coded(plan, state)}
    entries = {}
    for i, info in enumerate(plan.tensors):
        entries[i] = entry = {"step": tensor(np.array(step, np.float32))}
        for name in ("m", "v"):
            key, kept = _KEYS[name], coded.get((i, name))
            entry[f"{key}_qstate"] = qstate = {"enable": False, "overhead": {}, "qmap": None}
            found = parts[i, name]
            if set(found) == {"rows", "columns", "mean"} and _are_last_two(info.shape, found):
                entry["exp_avg_sq_row"] = tensor(found["rows"].copy())
                entry["exp_avg_sq_col"] = tensor(found["columns"].copy())
                continue
            overhead = None if kept is None else _lpmm_overhead(info.shape, kept, tensor, dtype)
            if overhead is None:
                entry[key] = tensor(moments[name][i])
                continue
            qstate.update(enable=True, overhead=overhead, qmap=tensor(kept.levels))
            entry[key] = tensor(_lpmm_packed(kept))
    return {"state": entries, "param_groups": _groups(plan, groups, False), "qconfig": qconfig}


def _are_last_two(shape, found):
    return found["rows"].shape == shape[:-1] and found["columns"].shape == shape[:-2] + shape[-1:]


def _lpmm_overhead(shape, kept, tensor, dtype):
    """What the package keeps beside packed codes; None where it has no such scales."""
    axes = [kept.scales.get(f"axis{axis}") for axis in range(len(shape))]
    stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    common = {"dtype": dtype, "stride": stride, "dim": len(shape)}
    if set(kept.scales) == {"scales"}:
        scales = kept.scales["scales"].ravel()
        size = next((b for b in (32 << k for k in range(8)) if kept.is_flat(b)), None)
        if size is None:
            return None
        # Of a single block any size will do; theirs is at least 128.
        size = max(size, 128) if scales.size == 1 else size
        max1 = tensor(scales.reshape(-1, 1).copy())
        return {**common, "max1": max1, "scaled_shape": (scales.size, size)}
    if len(shape) < 2 or any(axis is None for axis in axes) or len(kept.scales) != len(shape):
        return None
    keep = [[n if a == axis else 1 for a, n in enumerate(shape)] for axis in range(len(shape))]
    maxima = [tensor(axis.reshape(dims).copy()) for axis, dims in zip(axes, keep)]
    return {**common, "max1": None, "max_dims": maxima, "scaled_shape": shape}


def _lpmm_packed(kept):
    """In groups of 2048, the first code of a byte in its lowest bits, one byte more than needed."""
    codes = np.pad(kept.codes, (0, -kept.codes.size % 2048))
    packed = _codes.pack_rows(codes, 1, codes.size, 8 // kept.bits).ravel()
    return np.append(packed, np.uint8(0)).view(np.int8)


def to_optax(plan, state, step, like):
    """An optax state with these moments, decoded to the dtypes that it has.

    like: a state of the same optimizer for the same parameters, from its `init`; it must contain
        one part with count, mu and nu.
    """
    import jax
    import jax.numpy as jnp

    from .. import jax as binding
    from ._read import _adam_states

    if len(list(_adam_states(like))) != 1:
        raise ValueError("the state `like` must have one part with count, mu and nu")
    names = [tensor.name for tensor in plan.tensors]
    moments = {name: dict(zip(names, values)) for name, values in _decoded(plan, state).items()}

    def fill(tree, values):
        def leaf(path, old):
            name = binding.path_name(path)
            if name not in values:
                raise ValueError(f"the plan has no tensor {name}")
            return jnp.asarray(values[name], old.dtype).reshape(old.shape)

        return jax.tree_util.tree_map_with_path(leaf, tree)

    def replace(part):
        if all(hasattr(part, field) for field in ("count", "mu", "nu")):
            return part._replace(
                count=jnp.asarray(step, part.count.dtype),
                mu=fill(part.mu, moments["m"]),
                nu=fill(part.nu, moments["v"]),
            )
        if hasattr(part, "_fields"):
            part = type(part)(*map(replace, part))
            if hasattr(part, "count") and not callable(part.count):  # of a schedule
                part = part._replace(count=jnp.asarray(step, part.count.dtype))
            return part
        if isinstance(part, (tuple, list)):
            return type(part)(map(replace, part))
        if isinstance(part, dict):
            return {key: replace(value) for key, value in part.items()}
        return part

    return replace(like)


# --- what they share -----------------------------------------------------------------------------


def _decoded(plan, state):
    names = dict.fromkeys(info.state for info in plan.buffers if info.state in _KEYS)
    if not {"m", "v"} <= set(names):
        raise ValueError(f"the plan's states are {list(names)}; an Adam's are m and v")
    return {name: plan.decompress(name, state) for name in names}


def _groups(plan, groups, amsgrad):
    if groups is None:
        groups = [{}] * plan.group_count
    if len(groups) != plan.group_count:
        raise ValueError(f"{len(groups)} groups are given; the plan has {plan.group_count}")
    return [
        {
            **_DEFAULTS,
            **({"amsgrad": True} if amsgrad else {}),
            **group,
            "params": [i for i, tensor in enumerate(plan.tensors) if tensor.group == number],
        }
        for number, group in enumerate(groups)
    ]


class _Coded(NamedTuple):
    """A state that is levels times scales.

    tensor, state: index and name.
    bits: of the place of a code: 2, 4 or 8.
    codes, levels: as in `Codes`.
    scales: the buffers of scales, by part.
    rows, columns: of the block grid.
    """

    tensor: int
    state: str
    bits: int
    codes: np.ndarray
    levels: np.ndarray
    scales: dict
    rows: int
    columns: int

    def is_flat(self, block):
        """Whether it has a scale for each block of so many elements, counted through the whole
        tensor."""
        if set(self.scales) != {"scales"}:
            return False
        # Sizes are powers of two, of which one gives the count, or all agree on one block.
        power = block > 0 and block & (block - 1) == 0
        same = power and -(-self.columns // block) == self.scales["scales"].shape[-1]
        return same and (self.rows == 1 or self.columns % block == 0)

    def block_scales(self):
        return self.scales["scales"].ravel().copy()


def _parts(plan, state):
    """The arrays of each state, by (tensor's index, state's name) and part."""
    parts = {}
    for info, array in zip(plan.buffers, state):
        parts.setdefault((info.tensor, info.state), {})[info.part] = array
    return parts


def _coded(plan, state):
    """The states that are codes."""
    if '"dither":true' in plan.spec.json:
        return  # a dither is added to the levels, another one in each block
    for (i, name), scales in _parts(plan, state).items():
        codes = scales.pop("codes", None)
        if codes is None or not codes.size:
            continue
        numel = math.prod(plan.tensors[i].shape)
        rows, columns = _codes.rows_and_columns(numel, codes.shape)
        bits = 8 // _codes.codes_per_byte(columns, codes.shape[-1])
        levels = _codes.levels(plan, i, name, 1 << bits)
        codes = _codes.unpack_rows(codes, columns)
        yield _Coded(i, name, bits, codes, levels, scales, rows, columns)


def _torch_tensor():
    import torch

    return lambda array: torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _torchao_state(codes, scale, qmap, signed, shape, bits):
    from torchao.optim.subclass_4bit import OptimState4bit
    from torchao.optim.subclass_8bit import OptimState8bit

    if bits == 4:
        return OptimState4bit(codes, scale, qmap, signed, shape)
    return OptimState8bit(codes, scale, qmap, signed)
