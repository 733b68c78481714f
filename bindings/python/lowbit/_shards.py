"""Where parameters and states lie on a mesh of devices, and how devices combine statistics.

Nothing of the step is known here. Which part of a state belongs to which part of its parameter is
asked of the library: a plan of a shard has the shapes that its states have.
"""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from . import core
from ._library import Error


def sharding_of(leaf):
    """The sharding of a parameter as far as it is known: by its type under `jit` with Explicit axes,
    by the array outside; else None."""
    if isinstance(leaf, jax.core.Tracer):
        leaf = leaf.aval
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) and any(sharding.spec) else None


def layout(spec, tensors, shardings, plan):
    """A Layout of tensors, or None if none of them is sharded.

    shardings: for each tensor a NamedSharding or None.
    plan: makes a Plan of a spec and a tuple of tensors.

    Raises ValueError naming the tensor that cannot be sharded so, with the reason.
    """
    meshes = [sharding.mesh for sharding in shardings if sharding is not None]
    if not meshes or meshes[0].size == 1:
        return None
    mesh = meshes[0]
    for tensor, sharding in zip(tensors, shardings):
        if sharding is None:
            continue
        if not isinstance(sharding, NamedSharding):
            raise ValueError(
                f"the sharding of {tensor.name} is {sharding!r}; it must be a NamedSharding"
            )
        if dict(sharding.mesh.shape) != dict(mesh.shape):
            raise ValueError(f"the sharding of {tensor.name} is on another mesh than the first one")
    shards = [
        _shard(spec, tensor, None if sharding is None else sharding.spec, dict(mesh.shape), plan)
        for tensor, sharding in zip(tensors, shardings, strict=True)
    ]
    return Layout(mesh, tuple(shards), plan)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One device's part of a tensor.

    spec: how the parameter is sharded.
    names: for each of its axes those of the mesh that divide it.
    axes: those of the mesh that divide it in the step, sorted; () if it is stepped whole.
    tensor: as the step sees it.
    sizes: of the mesh.
    """

    spec: PartitionSpec
    names: tuple
    axes: tuple
    tensor: core.Tensor
    sizes: Any

    @property
    def is_gathered(self):
        return not self.axes and any(self.names)

    def gather(self, array):
        """What the step needs of an array that is sharded as the parameter."""
        if self.is_gathered:
            for axis, names in enumerate(self.names):
                if names:
                    array = jax.lax.all_gather(array, names, axis=axis, tiled=True)
        return array

    def cut(self, array):
        """The reverse of `gather`."""
        if self.is_gathered:
            for axis, names in enumerate(self.names):
                if names:
                    extent = array.shape[axis] // _product(self.sizes, names)
                    at = jax.lax.axis_index(names) * extent
                    array = jax.lax.dynamic_slice_in_dim(array, at, extent, axis)
        return array

    def offset(self):
        """The place of this device's part: a list of scalars."""
        if not self.axes:
            return [jnp.int32(0)] * len(self.names)
        return [
            jax.lax.axis_index(names).astype(jnp.int32) * extent if names else jnp.int32(0)
            for names, extent in zip(self.names, self.tensor.shape)
        ]


@dataclasses.dataclass(frozen=True)
class Layout:
    """All tensors of a model, or of one call, on a mesh."""

    mesh: Any
    shards: tuple
    plan: Any

    def of(self, members):
        return dataclasses.replace(self, shards=tuple(self.shards[i] for i in members))

    @property
    def axes(self):
        """Of a call, all of whose tensors are sharded over the same axes."""
        return self.shards[0].axes

    def offsets(self):
        places = [at for shard in self.shards for at in shard.offset()]
        return jnp.stack(places) if places else jnp.zeros((0,), jnp.int32)

    def buffer_specs(self, plan):
        """How each state buffer of a plan of the whole tensors is sharded."""
        specs = []
        for tensor, shard in zip(plan.tensors, self.shards, strict=True):
            specs += _buffer_specs(plan.spec, tensor, shard, self.plan)
        return specs

    def place(self, array, spec):
        """An array with a sharding, inside of a program."""
        sharding = NamedSharding(self.mesh, spec)
        if is_explicit(self.mesh):
            return jax.sharding.reshard(array, sharding)
        return jax.lax.with_sharding_constraint(array, sharding)


def is_explicit(mesh):
    explicit = getattr(getattr(jax.sharding, "AxisType", None), "Explicit", None)
    kinds = getattr(mesh, "axis_types", None) or ()
    return explicit is not None and explicit in tuple(kinds)


def _product(sizes, names):
    return math.prod(sizes[name] for name in names)


def _shard(spec, tensor, partition, sizes, plan):
    """The Shard of a tensor."""
    entries = tuple(partition or ()) + (None,) * len(tensor.shape)
    names = []
    for entry in entries[: len(tensor.shape)]:
        entry = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        names.append(tuple(name for name in entry if sizes[name] > 1))
    names = tuple(names)
    partition = PartitionSpec(*entries[: len(tensor.shape)])
    parts = [_product(sizes, group) for group in names]
    for extent, count in zip(tensor.shape, parts):
        if extent % count:
            raise ValueError(
                f"{tensor.name} of shape {tensor.shape} cannot be sharded as {partition}: {extent} is"
                f" no multiple of {count}"
            )
    whole = Shard(partition, names, (), tensor, sizes)
    axes = tuple(sorted({name for group in names for name in group}))
    if not axes or 0 in tensor.shape:
        return whole
    shape = tuple(extent // count for extent, count in zip(tensor.shape, parts))
    local = tensor._replace(shape=shape, global_shape=tensor.shape)
    last = tuple(extent - part for extent, part in zip(tensor.shape, shape))
    try:
        # Of the last shard, whose place has all that can be wrong.
        plan(spec, (local._replace(group=0, offset=last),))
    except Error as error:
        if math.prod(tensor.shape) <= json.loads(spec.json).get("threshold", 4096):
            # Small tensors may be cut anywhere. They are stepped whole, by every device.
            return whole
        raise ValueError(
            f"{tensor.name} of shape {tensor.shape} cannot be sharded as {partition}: {error}"
        ) from None
    return Shard(partition, names, axes, local, sizes)


def _buffer_specs(spec, tensor, shard, plan):
    """How the states of a tensor are sharded: along the axes that shrink as the tensor's do."""
    tensor = tensor._replace(group=0)
    whole = [info.shape for info in plan(spec, (tensor,)).buffers]
    specs = [[None] * len(shape) for shape in whole]
    for axis, names in enumerate(shard.names if shard.axes else ()):
        if not names:
            continue
        # A tensor that is cut along this axis only.
        shape = list(tensor.shape)
        shape[axis] = shard.tensor.shape[axis]
        cut = tensor._replace(shape=tuple(shape), global_shape=tensor.shape)
        for entries, before, info in zip(specs, whole, plan(spec, (cut,)).buffers, strict=True):
            for i, (old, new) in enumerate(zip(before, info.shape, strict=True)):
                if old != new:
                    entries[i] = names if len(names) > 1 else names[0]
    return [PartitionSpec(*entries) for entries in specs]


def shard_map(body, mesh, in_specs, out_specs):
    """`jax.shard_map` of every version. What is replicated is so because all devices compute it from
    the same, which JAX cannot see through a custom call; its check is off."""
    if hasattr(jax, "shard_map"):
        return jax.shard_map(
            body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
    from jax.experimental.shard_map import shard_map as experimental

    return experimental(body, mesh, in_specs, out_specs, check_rep=False)


def combine(scratch, stage, axes):
    """The scratch with the statistics of one stage combined over the devices along `axes`."""
    words = stage.count * (2 if stage.dtype == "i64" else 1)
    at = stage.offset // 4
    mine = scratch[at : at + words]
    if stage.reduce == "max":
        mine = jax.lax.pmax(mine, axes)
    else:
        mine = _sum_i64(mine, axes)
    return jax.lax.dynamic_update_slice(scratch, mine, (at,))


def _sum_i64(words, axes):
    """Exact sums of 64-bit integers, low word first, without 64-bit integers, which JAX has only if it
    is asked to: as 16-bit limbs, of which fewer than 2^15 can be added, and carries."""
    words = jax.lax.bitcast_convert_type(words.reshape(-1, 2), jnp.uint32)
    limbs = jnp.stack(
        [words[:, 0] & 0xFFFF, words[:, 0] >> 16, words[:, 1] & 0xFFFF, words[:, 1] >> 16]
    )
    limbs = jax.lax.psum(limbs.astype(jnp.int32), axes).astype(jnp.uint32)

    exact, carried = [], jnp.uint32(0)
    for limb in limbs:
        total = limb + carried
        exact.append(total & 0xFFFF)
        carried = total >> 16
    low, high = exact[0] | exact[1] << 16, exact[2] | exact[3] << 16
    return jax.lax.bitcast_convert_type(jnp.stack([low, high], axis=1), jnp.int32).reshape(-1)
