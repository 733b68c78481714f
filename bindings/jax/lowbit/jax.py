"""Optimizers for JAX whose states are kept in 4 bits.

    optimizer = lowbit.jax.adamw(3e-4, weight_decay=0.1)
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, batch):
        grads = jax.grad(loss)(params, batch)
        return optimizer.apply(grads, state, params)

Parameters and states are updated in place where they are donated, and stay intact where not. The
state is a tree of plain arrays. The step is one custom call for every 64 tensors, on the CPU.
"""

import dataclasses
import functools
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import core
from ._library import library

_TARGET = "lowbit_xla_step"

#: XLA's compile time grows faster than the number of operands of one call.
_TENSORS_PER_CALL = 64


class Moment(NamedTuple):
    """One moment of all parameters: trees of the parameters' structure.

    A leaf has shape (1,) where its parameter does not use it or is empty.

    codes: uint8, two 4-bit codes a byte.
    scales: float32, one for each block; the moment itself where it is kept in 32 bits.
    axes: a tuple of trees, float32: for each axis the maxima of its slices (rank-1 normalization).
    """

    codes: Any
    scales: Any
    axes: tuple


class AdamWState(NamedTuple):
    """The state of `adamw`.

    count: int32, the steps done.
    m: the first moment.
    v: the second moment.
    skipped: int32[2], how many blocks and how many tensors were left as they are because of
        non-finite gradients or `skip`, over all steps.
    """

    count: Any
    m: Moment
    v: Moment
    skipped: Any


def adamw(
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.01,
    *,
    mask=None,
    spec="adamw4",
    nonfinite="default",
    threads=0,
):
    """AdamW (Loshchilov and Hutter 2019), with fused updates.

    learning_rate: a number, a scalar array, or a schedule: a function of the count of steps done.
    b1, b2, eps, weight_decay: numbers or scalar arrays; changing an array does not retrace.
    mask: a tree of bools of the parameters' structure (or a prefix of it), or a function from
        parameters to one: which parameters decay. None: all.
    spec: a preset's name, "adamw4" (the paper's), "adamw4-block" or "adamw32", or a spec's JSON
        form as a dict, which can also say what single tensors get. Tensors are named by their
        path in the tree, joined by dots: "layers.0.kernel".
    nonfinite: what happens when a gradient is not finite: "default", "skip_block", "skip_tensor",
        "skip_step" or "propagate".
    threads: that work in one call, XLA's among them; 0: as many as the process may use.

    Raises lowbit.Error if the spec is not one.
    """
    if nonfinite not in core.NONFINITE:
        raise ValueError(f"nonfinite is {nonfinite!r}; it must be one of {list(core.NONFINITE)}")
    return AdamW(
        learning_rate, b1, b2, eps, weight_decay, mask, core.Spec(spec), nonfinite, threads
    )


@dataclasses.dataclass(frozen=True, eq=False)
class AdamW:
    """What `adamw` returns. `init, update = optimizer` unpacks it as optax does."""

    learning_rate: Any
    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any
    mask: Any
    spec: core.Spec
    nonfinite: str
    threads: int

    def __iter__(self):
        return iter((self.init, self.update))

    def plan(self, params):
        """The `lowbit.Plan` of all parameters (arrays or shapes): its `report()` says what each
        got and why, `state_bytes` how much memory the states take."""
        return _plan(self.spec, tuple(_tensors(params, params)))

    def init(self, params):
        """The state before the first step. Only shapes and dtypes of `params` matter."""
        plan = self.plan(params)
        zeros = [jnp.zeros(info.shape, info.numpy_dtype) for info in plan.buffers]
        return _state(plan, jax.tree.structure(params), zeros, 0)

    def apply(self, grads, state, params, **arguments):
        """One step: returns new parameters and state, in place where `params` and `state` are
        donated.

        grads: a tree like `params`, float32 or bfloat16; need not have the parameters' dtypes.
        learning_rate: instead of the optimizer's.
        grad_scale, clip_factor: the gradients are multiplied by both.
        skip: a bool; if true, nothing changes, the count included.
        """
        return self._step("param", grads, state, params, **arguments)

    def update(self, grads, state, params, **arguments):
        """One step in optax's form: returns what is to be added to the parameters (in their
        dtype), and the state. Takes what `apply` takes.

        With bfloat16 parameters `apply` is more exact: it rounds once.
        """
        return self._step("update", grads, state, params, **arguments)

    def _step(
        self,
        output,
        grads,
        state,
        params,
        *,
        learning_rate=None,
        grad_scale=1.0,
        clip_factor=1.0,
        skip=False,
    ):
        if params is None:
            raise ValueError("AdamW needs the parameters: pass params")
        _register()
        treedef = jax.tree.structure(params)
        tensors = _tensors(params, grads)
        params, grads = treedef.flatten_up_to(params), treedef.flatten_up_to(grads)
        if learning_rate is None:
            learning_rate = self.learning_rate
        if callable(learning_rate):
            learning_rate = learning_rate(state.count)
        nonfinite = self.nonfinite
        if nonfinite == "skip_step":
            # A call sees its own tensors only, so the step's fate is decided here.
            skip = jnp.logical_or(skip, ~_squares_are_finite(grads, grad_scale, clip_factor))
            nonfinite = "default"
        step = state.count + 1
        slots = _slots(treedef, state)
        outputs, skipped = list(params), state.skipped
        for decay, members in self._calls(treedef, params):
            plan = _plan(self.spec, tuple(tensors[i] for i in members))
            hyper = [
                learning_rate,
                self.b1,
                self.b2,
                self.eps,
                self.weight_decay if decay else 0.0,
                grad_scale,
                clip_factor,
                skip,
            ]
            new_params, buffers, counts = _call(
                plan,
                {"output": output, "nonfinite": nonfinite, "threads": self.threads},
                jnp.stack([jnp.asarray(value, jnp.float32).reshape(()) for value in hyper]),
                step,
                [params[i] for i in members],
                [grads[i] for i in members],
                [slots[_slot(info)][members[info.tensor]] for info in plan.buffers],
            )
            for i, param in zip(members, new_params):
                outputs[i] = param
            for info, buffer in zip(plan.buffers, buffers):
                slots[_slot(info)][members[info.tensor]] = buffer
            skipped = skipped + counts
        count = jnp.where(jnp.asarray(skip, bool), state.count, step)
        m, v = _moments(treedef, slots)
        return treedef.unflatten(outputs), AdamWState(count, m, v, skipped)

    def _calls(self, treedef, params):
        """Yields, for each custom call, whether its parameters decay and which they are."""
        decays = [True] * len(params)
        if self.mask is not None:
            params_tree = treedef.unflatten(params)
            mask = self.mask(params_tree) if callable(self.mask) else self.mask
            spread = jax.tree.map(
                lambda flag, subtree: jax.tree.map(lambda _: bool(flag), subtree),
                mask,
                params_tree,
            )
            decays = jax.tree.leaves(spread)
        for decay in (True, False):
            # Empty tensors have nothing to update.
            members = [i for i, p in enumerate(params) if decays[i] == decay and p.size > 0]
            for at in range(0, len(members), _TENSORS_PER_CALL):
                yield decay, members[at : at + _TENSORS_PER_CALL]


def save(path, optimizer, params, state):
    """Writes a checkpoint of the state (not of the parameters), whole or not at all.

    Every binding reads it. Raises lowbit.Error if the file cannot be written.
    """
    plan = optimizer.plan(params)
    slots = _slots(jax.tree.structure(params), state)
    arrays = [
        # An empty buffer has a dummy in its place.
        np.asarray(slots[_slot(info)][info.tensor])
        if math.prod(info.shape) > 0
        else np.zeros(info.shape, info.numpy_dtype)
        for info in plan.buffers
    ]
    plan.save(path, arrays, int(state.count))


def load(path, optimizer, params):
    """The state in a checkpoint that any binding has written for tensors of these names and shapes
    under this spec; their order may differ.

    Raises lowbit.Error if the file is not sound or belongs to another model.
    """
    plan = optimizer.plan(params)
    arrays = plan.zeros()
    count = plan.load(path, arrays)
    arrays = [jnp.array(array) for array in arrays]
    return _state(plan, jax.tree.structure(params), arrays, count)


# --- the custom call -----------------------------------------------------------------------------


@functools.cache
def _register():
    """Makes the handler known to XLA, once for each process."""
    # The backends start first: one that is refused a handler while it starts does not start at all.
    jax.devices()
    handler = jax.ffi.pycapsule(library().lowbit_xla_step)
    jax.ffi.register_ffi_target(_TARGET, handler, platform="cpu")


def _call(plan, options, hyper, step, params, grads, buffers):
    """One custom call: new parameters (or updates), new state buffers, int32[2] of skips."""
    update = options["output"] == "update"
    results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (*params, *buffers)]
    results.append(jax.ShapeDtypeStruct((plan.scratch_words,), jnp.int32))
    results.append(jax.ShapeDtypeStruct((2,), jnp.int32))
    # Operands: hyper, step, params, grads, buffers. Aliased to their results, all are updated in
    # place under donation; without it XLA copies before the call.
    n = len(params)
    aliases = {2 + 2 * n + i: n + i for i in range(len(buffers))}
    for i, (param, grad) in enumerate(zip(params, grads)):
        if not update:
            aliases[2 + i] = i
        elif param.dtype == grad.dtype:
            aliases[2 + n + i] = i
    call = jax.ffi.ffi_call(_TARGET, results, input_output_aliases=aliases)
    new = call(
        hyper,
        step,
        *params,
        *grads,
        *buffers,
        plan=_plan_json(plan, options["threads"]),
        output=options["output"],
        nonfinite=np.int32(core.NONFINITE[options["nonfinite"]]),
    )
    return new[:n], new[n:-2], new[-1]


def _plan_json(plan, threads):
    """The attribute from which the handler makes its own plan: there are no pointers in it, so
    that compiled programs can be kept."""
    return json.dumps(
        {
            "spec": json.loads(plan.spec.json),
            "tensors": [tensor._asdict() for tensor in plan.tensors],
            "threads": threads,
        },
        separators=(",", ":"),
    )


def _squares_are_finite(grads, grad_scale, clip_factor):
    """Whether no gradient of the step is non-finite as the library sees it: its square, scaled."""
    scale = jnp.asarray(grad_scale, jnp.float32) * jnp.asarray(clip_factor, jnp.float32)
    finite = jnp.asarray(True)
    for grad in grads:
        scaled = grad.astype(jnp.float32) * scale
        finite &= jnp.isfinite(scaled * scaled).all()
    return finite


# --- trees ---------------------------------------------------------------------------------------
#
# A slot is one tree of a moment, ("m", "codes") or ("v", "axis0"); inside a step, states are lists
# of leaves by slot.


def _tensors(params, grads):
    """A core.Tensor for each leaf."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    tensors = []
    for (path, param), grad in zip(paths, treedef.flatten_up_to(grads)):
        name = ".".join(_key(key) for key in path)
        if grad.shape != param.shape:
            raise ValueError(
                f"the gradient of {name} has shape {grad.shape}, the parameter {param.shape}"
            )
        dtypes = [_dtype(param, f"the parameter {name}"), _dtype(grad, f"the gradient of {name}")]
        tensors.append(core.Tensor(name, tuple(param.shape), *dtypes))
    return tensors


def _key(key):
    """A step of a path as text: `a` of a dict, `0` of a list, `w` of an object."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _dtype(leaf, what):
    dtype = {"float32": "f32", "bfloat16": "bf16"}.get(jnp.dtype(leaf.dtype).name)
    if dtype is None:
        raise TypeError(f"{what} has dtype {leaf.dtype}; it must be float32 or bfloat16")
    return dtype


@functools.cache
def _plan(spec, tensors):
    """Plans are kept, as those of the library's handler are: one for each distinct model."""
    return core.Plan(spec, tensors)


def _slot(info):
    return info.state, "scales" if info.part == "value" else info.part


def _axis_count(plan, moment):
    """How many trees of axis maxima a moment has.

    At least two under a spec with any, so that for matrices and vectors it can be told from the
    spec alone: optax.tree_utils.tree_map_params compares with the state of a placeholder.
    """
    spec = json.loads(plan.spec.json)
    rules = [spec, *spec.get("overrides", [])]
    rank1 = any(rule.get(moment, {}).get("normalization") == "rank1" for rule in rules)
    axes = [info.part for info in plan.buffers if _slot(info)[1].startswith("axis")]
    if not rank1:
        return 0
    return max([2, *(1 + int(part.removeprefix("axis")) for part in axes)])


def _state(plan, treedef, buffers, count):
    """A state of the plan's buffers, with dummies where there is none or an empty one."""
    slots = {}
    for moment in ("m", "v"):
        names = ["codes", "scales", *(f"axis{i}" for i in range(_axis_count(plan, moment)))]
        for name in names:
            dtype = jnp.uint8 if name == "codes" else jnp.float32
            # Checkpoint libraries refuse arrays without elements.
            leaves = [jnp.zeros((1,), dtype) for _ in range(treedef.num_leaves)]
            slots[moment, name] = leaves
    for info, buffer in zip(plan.buffers, buffers):
        if buffer.size > 0:
            slots[_slot(info)][info.tensor] = buffer
    m, v = _moments(treedef, slots)
    return AdamWState(jnp.asarray(count, jnp.int32), m, v, jnp.zeros((2,), jnp.int32))


def _slots(treedef, state):
    """The leaves of a state by slot."""
    slots = {}
    for name, moment in (("m", state.m), ("v", state.v)):
        slots[name, "codes"] = treedef.flatten_up_to(moment.codes)
        slots[name, "scales"] = treedef.flatten_up_to(moment.scales)
        for i, tree in enumerate(moment.axes):
            slots[name, f"axis{i}"] = treedef.flatten_up_to(tree)
    return slots


def _moments(treedef, slots):
    """The reverse of `_slots`: m and v."""
    for name in ("m", "v"):
        axes = [key for key in slots if key[0] == name and key[1].startswith("axis")]
        yield Moment(
            treedef.unflatten(slots[name, "codes"]),
            treedef.unflatten(slots[name, "scales"]),
            tuple(treedef.unflatten(slots[key]) for key in axes),
        )
