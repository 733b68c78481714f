"""Parameters that are DTensors: each process steps its shard, with the bits of one process.

The statistics that a step needs of a whole tensor are collected in stages, and reduced over the
processes after each; maxima and exact sums make the result independent of how tensors are cut.
Needs torch 2.5.
"""

import functools
import json

import torch
import torch.distributed as dist

from .. import core


def sharding(param):
    """What parameters must share to be in one call: None for a plain tensor, else the mesh and
    along which of its axes it cuts them."""
    if not hasattr(param, "device_mesh"):
        return None
    return param.device_mesh, tuple(place.is_shard() for place in param.placements)


class Shards:
    """Where DTensors of one sharding lie.

    params: a list of DTensor.
    names: of these.
    spec: as text.

    Raises ValueError naming a parameter that is placed in another way than by Shard and Replicate.
    """

    def __init__(self, params, names, spec):
        from torch.distributed.tensor import DTensor, Replicate, Shard

        self._dtensor, self._replicate, self._shard = DTensor, Replicate, Shard
        for param, name in zip(params, names):
            for place in param.placements:
                if type(place) not in (Shard, Replicate):
                    raise ValueError(
                        f"{name} is placed as {param.placements}; a step needs Shard or Replicate"
                    )
        self._params = params
        self._spec = spec
        self.mesh, self._cuts = sharding(params[0])
        self._groups = [self.mesh.get_group(axis) for axis, cut in enumerate(self._cuts) if cut]

    def placed(self, tensors):
        """These tensors, the shards of this process, with their place in the whole ones; but for
        those whose elements have nothing to do with each other, and which may be cut anywhere."""
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        found = []
        for param, tensor in zip(self._params, tensors):
            shape, offset = compute_local_shape_and_global_offset(
                param.shape, self.mesh, param.placements
            )
            if tuple(shape) != tensor.shape:
                raise ValueError(
                    f"the shard of {tensor.name} has shape {tensor.shape} and not {tuple(shape)}"
                )
            if self._is_elementwise(param, tensor):
                found.append(tensor)
                continue
            # An empty shard may be said to begin anywhere, also behind the end.
            offset = tuple(min(begin, extent) for begin, extent in zip(offset, param.shape))
            found.append(tensor._replace(global_shape=tuple(param.shape), offset=offset))
        return tuple(found)

    def _is_elementwise(self, param, tensor):
        """Whether a step of the whole tensor is one of each element: float32 states, and neither
        random numbers nor statistics. (But where a gradient is not finite, a block is skipped;
        blocks are then those of the shard.)
        """
        whole = _whole(tensor, param)
        keys = _buffers(self._spec, whole, None)
        return (
            json.loads(self._spec)["optimizer"] in ("adamw", "adam", "sgdm", "lion")
            and all(key.endswith(".value") or key.startswith("weights.") for key in keys)
            and tensor.weights != "stochastic"
        )

    def state(self, index, key, tensor, value):
        """The DTensor whose shard of this process is `value`.

        index: of the parameter.
        key: of the state, as "m.codes".
        tensor: the core.Tensor of the shard.
        """
        param = self._params[index]
        whole = _whole(tensor, param)
        shape = _buffers(self._spec, whole, None)[key]
        placements = []
        for place in param.placements:
            axis = _cut_axis(self._spec, whole, place.dim, key) if place.is_shard() else None
            placements.append(self._replicate() if axis is None else self._shard(axis))
        return self._dtensor.from_local(
            value,
            self.mesh,
            placements,
            run_check=False,
            shape=torch.Size(shape),
            stride=torch.empty(shape, device="meta").stride(),
        )

    def scatter(self, whole, target):
        """Copies this process's part of a tensor that is the same in all processes.

        target: the DTensor whose shard receives it.
        """
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        shape, offset = compute_local_shape_and_global_offset(
            target.shape, self.mesh, target.placements
        )
        part = whole[tuple(slice(at, at + extent) for at, extent in zip(offset, shape))]
        target.to_local().copy_(part)

    def reduce(self, statistics, how):
        """Combines statistics over the processes, in place. how: "max" or "sum"."""
        op = {"max": dist.ReduceOp.MAX, "sum": dist.ReduceOp.SUM}[how]
        for group in self._groups:
            dist.all_reduce(statistics, op, group=group)


def _whole(tensor, param):
    """The core.Tensor of a parameter, from that of a shard."""
    return tensor._replace(shape=tuple(param.shape), group=0, global_shape=None, offset=None)


@functools.lru_cache(maxsize=4096)
def _buffers(spec, whole, empty):
    """A dict from the key of each state of a tensor to its shape.

    empty: the axis along which a shard has no elements; None: of the whole tensor.
    """
    tensor = whole
    if empty is not None:
        shape = whole.shape
        tensor = whole._replace(shape=(*shape[:empty], 0, *shape[empty + 1 :]), global_shape=shape)
    plan = core.Plan(json.loads(spec), [tensor])
    return {f"{info.state}.{info.part}": info.shape for info in plan.buffers}


def _cut_axis(spec, whole, axis, key):
    """The axis along which a state is cut when its tensor is cut along `axis`; None: it is not.

    An empty shard's states are empty along the axis that is cut, and whole along all others.
    """
    full, empty = (_buffers(spec, whole, at)[key] for at in (None, axis))
    cut = [i for i, (left, right) in enumerate(zip(full, empty)) if left != right]
    return cut[0] if cut else None
