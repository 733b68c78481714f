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
    for kept in _blocks(plan, state):
        shape, codes = plan.tensors[kept.tensor].shape, kept.codes
        block, rest = divmod(codes.size, kept.scales.size)
        if rest or not kept.is_flat(block) or kept.bits not in (4, 8):
            continue
        codes = codes[::2] << 4 | codes[1::2] if kept.bits == 4 else codes.reshape(shape)
        parts = map(tensor, (codes, kept.scales, kept.levels))
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
    for kept in _blocks(plan, state):
        if kept.bits == 8 and kept.is_flat(256) and kept.state in ("m", "v"):
            number = "1" if kept.state == "m" else "2"
            coded.setdefault(kept.tensor, {}).update(
                {
                    f"state{number}": tensor(kept.codes.reshape(plan.tensors[kept.tensor].shape)),
                    f"absmax{number}": tensor(kept.scales),
                    f"qmap{number}": tensor(kept.levels),
                }
            )
    for i, parts in coded.items():
        if len(parts) == 6:
            entries[i].update(parts)
    return {"state": dict(enumerate(entries)), "param_groups": _groups(plan, groups, False)}


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


class _Blocks(NamedTuple):
    """A state with a scale for each block.

    tensor, state: index and name.
    bits: of the place of a code: 2, 4 or 8.
    codes, levels: as in `Codes`. scales: flat.
    rows, columns, row_blocks: of the block grid.
    """

    tensor: int
    state: str
    bits: int
    codes: np.ndarray
    levels: np.ndarray
    scales: np.ndarray
    rows: int
    columns: int
    row_blocks: int

    def is_flat(self, block):
        """Whether blocks of so many elements, counted through the whole tensor, are these."""
        # Sizes are powers of two, of which one gives the count, or all agree on one block.
        power = block > 0 and block & (block - 1) == 0
        same = power and -(-self.columns // block) == self.row_blocks
        return same and (self.rows == 1 or self.columns % block == 0)


def _blocks(plan, state):
    """The states that are levels times block scales."""
    if '"dither":true' in plan.spec.json:
        return  # a dither is added to the levels, another one in each block
    parts = {}
    for info, array in zip(plan.buffers, state):
        parts.setdefault((info.tensor, info.state), {})[info.part] = array
    for (i, name), of in parts.items():
        if set(of) != {"codes", "scales"} or not of["codes"].size:
            continue
        numel = math.prod(plan.tensors[i].shape)
        rows, columns = _codes.rows_and_columns(numel, of["codes"].shape)
        per_byte = _codes.codes_per_byte(columns, of["codes"].shape[-1])
        yield _Blocks(
            i,
            name,
            8 // per_byte,
            _codes.unpack_rows(of["codes"], columns),
            _codes.levels(plan, i, name, 1 << 8 // per_byte),
            of["scales"].ravel().copy(),
            rows,
            columns,
            of["scales"].shape[-1],
        )


def _torch_tensor():
    import torch

    return lambda array: torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _torchao_state(codes, scale, qmap, signed, shape, bits):
    from torchao.optim.subclass_4bit import OptimState4bit
    from torchao.optim.subclass_8bit import OptimState8bit

    if bits == 4:
        return OptimState4bit(codes, scale, qmap, signed, shape)
    return OptimState8bit(codes, scale, qmap, signed)
