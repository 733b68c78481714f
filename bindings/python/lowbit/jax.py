"""Optimizers for JAX whose states are kept in 4 bits.

    optimizer = lowbit.jax.adamw(3e-4, weight_decay=0.1)
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, batch):
        grads = jax.grad(loss)(params, batch)
        return optimizer.apply(grads, state, params)

Each is an `optax.GradientTransformationExtraArgs`, with `apply` beside `update`. Parameters and states
are updated in place where they are donated, and stay intact where not. The state is a tree of plain
arrays, sharded as the parameters are. The step is one custom call for every 64 tensors, on the CPU or
on an NVIDIA GPU, where it may be part of a command buffer.
"""

import dataclasses
import functools
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from . import _shards, core
from ._c_api import LOWBIT_HYPER_COUNT
from ._library import library

_TARGET = "lowbit_xla_step"
_SHARD_TARGET = "lowbit_xla_shard"

#: The most that a device's plan needs of scratch beyond the CPU's, in words for each tensor
#: (`ticket_words` in src/backend/cuda/table.rs). The handler refuses less than it needs.
_DEVICE_WORDS = 2

#: Instead of shardings: XLA's own.
_PROPAGATE = "propagate"

#: XLA's compile time grows faster than the number of operands of one call.
_TENSORS_PER_CALL = 64


class Moment(NamedTuple):
    """One moment of all parameters: trees of the parameters' structure.

    A leaf has shape (1,) where its parameter does not use it or is empty.

    codes: uint8, packed: two 4-bit codes a byte.
    scales: float32, one for each block; the moment itself where it is kept in 32 bits.
    axes: a tuple of trees, float32: the vectors that an element's value or scale is found from.
        Rank-1 and SM3: for each axis the maxima of its slices. Factored: the means of rows, of
        columns, and over all. Other normalizations: their maxima.
    """

    codes: Any
    scales: Any
    axes: tuple


class State(NamedTuple):
    """The state of an optimizer.

    count: int32, the steps done.
    m, v, vmax: a Moment each, None where the optimizer has no such state.
    weights: a tree of the parameters' structure: what is kept beside each parameter, shape (1,)
        where nothing is; None without the option `weights`.
    skipped: int32[2], how many blocks and how many tensors were left as they are because of
        non-finite gradients or `skip`, over all steps.
    """

    count: Any
    m: Any
    v: Any
    vmax: Any
    weights: Any
    skipped: Any


# --- constructors --------------------------------------------------------------------------------

_COMMON = """
    learning_rate: a number, a scalar array, or a schedule: a function of the count of steps done.
        It and the other hyper-parameters may be arrays; changing one does not retrace.
    mask: a tree of bools of the parameters' structure (or a prefix of it), or a function from
        parameters to one: which parameters decay. None: all.
    spec: a preset's name or a spec's JSON form as a dict, which can also say what single tensors
        get. Tensors are named by their path in the tree, joined by dots: "layers.0.kernel".
    weights: what is kept beside 16-bit parameters so that small updates are not lost: "master",
        "remainder16", "correction8", or nothing but random rounding, "stochastic". The name alone
        is for every 16-bit parameter; else a tree of names of the parameters' structure (or a
        prefix of it), or a function from parameters to one, with "plain" for nothing. Such
        parameters are stepped by `apply` only.
    nonfinite: what happens when a gradient is not finite: "default", "skip_block", "skip_tensor",
        "skip_step" or "propagate".
    threads: that work in one call on the CPU, XLA's among them. None: as many as the process may use.
    shardings: a tree of `NamedSharding` of the parameters' structure (or a prefix of it), or a function
        from parameters to one. None: as their types say on a mesh with Explicit axes, or, outside of
        `jit`, the arrays themselves. Under `jit` on a mesh with Auto axes nothing says how parameters
        are sharded, and without this XLA would gather them. "propagate" asks XLA for what it has found
        by propagation (`custom_partitioning`, JAX >= 0.7); such programs are not found again in the
        persistent compilation cache.

    Raises lowbit.Error if the spec is not one.
    """


def _documented(function):
    """Adds what is the same for all constructors."""
    function.__doc__ = function.__doc__.rstrip() + _COMMON
    return function


@_documented
def adamw(
    learning_rate: optax.ScalarOrSchedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, *, spec="adamw4", mask=None, weights=None,
    nonfinite="default", threads=None, shardings=None
):
    """AdamW (Loshchilov and Hutter 2019).

    b1, b2, eps, weight_decay: as in optax.
    spec: "adamw4" (the paper's), "adamw4-robust" (the closest to 32 bits), "adamw4-block" (the fastest),
        "adamw8" or "adamw32".
    """
    spec = _spec("adamw", spec)
    return _optimizer(spec, learning_rate, b1, b2, eps, weight_decay, mask=mask, weights=weights, nonfinite=nonfinite, threads=threads, shardings=shardings)


@_documented
def factor(
    learning_rate: optax.ScalarOrSchedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, *, spec="factor4", mask=None, weights=None,
    nonfinite="default", threads=None, shardings=None
):
    """AdamW whose v is kept as means of rows and columns, as in the paper's 4-bit Factor.

    b1, b2, eps, weight_decay: as in optax's adamw.
    spec: "factor4" or "factor32".
    """
    spec = _spec("adamw", spec)
    return _optimizer(spec, learning_rate, b1, b2, eps, weight_decay, mask=mask, weights=weights, nonfinite=nonfinite, threads=threads, shardings=shardings)


@_documented
def adam(learning_rate: optax.ScalarOrSchedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, *, spec="adamw4", mask=None, weights=None,
    nonfinite="default", threads=None, shardings=None):
    """Adam (Kingma and Ba 2015); the decay, if any, is part of the gradient (L2).

    b1, b2, eps: as in optax.
    spec: also a preset of AdamW, for its quantizers.
    """
    spec = {**_spec("adam", spec, "adamw"), "optimizer": "adam"}
    return _optimizer(spec, learning_rate, b1, b2, eps, weight_decay, mask=mask, weights=weights, nonfinite=nonfinite, threads=threads, shardings=shardings)


@_documented
def sgdm(
    learning_rate: optax.ScalarOrSchedule,
    momentum=0.9,
    weight_decay=0.0,
    *,
    dampening=None,
    nesterov=None,
    decoupled=None,
    spec="sgdm4",
    mask=None,
    weights=None,
    nonfinite="default",
    threads=None,
    shardings=None,
):
    """SGD with momentum, as torch defines it.

    momentum, weight_decay: the decay is part of the gradient (L2).
    dampening: from the second step on the gradient enters the momentum times 1 - dampening.
    nesterov: the step follows the gradient plus momentum times the new momentum.
    decoupled: the decay is as in AdamW. None, for all three: the spec's, else not.
    spec: "sgdm4", "sgdm8" or "sgdm32".
    """
    given = {"nesterov": nesterov, "dampening": dampening, "decoupled": decoupled}
    spec = _with_options(_spec("sgdm", spec), "sgdm", given)
    return _optimizer(spec, learning_rate, momentum, weight_decay=weight_decay, mask=mask, weights=weights, nonfinite=nonfinite, threads=threads, shardings=shardings)


@_documented
def lion(learning_rate: optax.ScalarOrSchedule, b1=0.9, b2=0.99, weight_decay=1e-3, *, spec="lion4", mask=None, weights=None,
    nonfinite="default", threads=None, shardings=None):
    """Lion (Chen et al. 2023).

    b1, b2, weight_decay: as in optax.
    spec: "lion4", "lion8" or "lion32".
    """
    spec = _spec("lion", spec)
    return _optimizer(spec, learning_rate, b1, b2, weight_decay=weight_decay, mask=mask, weights=weights, nonfinite=nonfinite, threads=threads, shardings=shardings)


@_documented
def adafactor(
    learning_rate: optax.ScalarOrSchedule | None = None,
    decay_rate=None,
    multiply_by_parameter_scale=None,
    clipping_threshold=None,
    momentum=None,
    weight_decay_rate=0.0,
    eps=1e-30,
    *,
    eps_parameter_scale=None,
    spec="adafactor",
    mask=None,
    weights=None,
    nonfinite="default",
    threads=None,
    shardings=None,
):
    """Adafactor (Shazeer and Stern 2018), with the arguments of optax.

    learning_rate: None: the paper's relative step, min(0.01, 1 / sqrt(step)).
    decay_rate: v decays by 1 - step^-decay_rate.
    multiply_by_parameter_scale: the step size is multiplied by the parameter's RMS, at least
        eps_parameter_scale.
    clipping_threshold: of the update's RMS; 0: no clipping. None, for these four: the spec's, else
        the paper's 0.8, true, 1e-3 and 1.
    momentum: None: none. Kept as the spec says, in 32 bits if it says nothing.
    weight_decay_rate: multiplied by the learning rate.
    eps: added to the squared gradient.
    spec: "adafactor".
    """
    spec = _spec("adafactor", spec)
    if momentum is None and "m" in spec:
        raise ValueError("the spec has a state m: give momentum")
    given = {
        "decay_rate": decay_rate,
        "scale_parameter": multiply_by_parameter_scale,
        "clip_threshold": clipping_threshold,
        "eps2": eps_parameter_scale,
    }
    if learning_rate is None or "adafactor" not in spec:
        given["relative_step"] = learning_rate is None
    spec, b1 = _with_momentum(_with_options(spec, "adafactor", given), momentum)
    learning_rate = 0.01 if learning_rate is None else learning_rate
    return _optimizer(spec, learning_rate, b1, eps=eps, weight_decay=weight_decay_rate, mask=mask, weights=weights, nonfinite=nonfinite, threads=threads, shardings=shardings)


@_documented
def sm3(learning_rate: optax.ScalarOrSchedule, momentum=0.9, weight_decay=0.0, *, spec="sm3", mask=None, weights=None,
    nonfinite="default", threads=None, shardings=None):
    """SM3 (Anil et al. 2019): the second moment is one vector of maxima for each axis.

    momentum: None: none. Kept as the spec says, in 32 bits if it says nothing.
    weight_decay: decoupled, as in AdamW.
    spec: "sm3".
    """
    spec, b1 = _with_momentum(_spec("sm3", spec), momentum)
    return _optimizer(spec, learning_rate, b1, weight_decay=weight_decay, mask=mask, weights=weights, nonfinite=nonfinite, threads=threads, shardings=shardings)


def _spec(optimizer, spec, also=None):
    """A spec's JSON form, of this optimizer."""
    spec = json.loads(core.Spec(spec).json)
    if spec["optimizer"] not in (optimizer, also):
        raise ValueError(f"the spec is for {spec['optimizer']}, not for {optimizer}")
    return spec


def _with_options(spec, name, given):
    """The spec with these options, as far as they are given, over its own."""
    given = {key: value for key, value in given.items() if value is not None}
    return {**spec, name: {**spec.get(name, {}), **given}} if given else spec


def _with_momentum(spec, momentum):
    """The spec with a state m if there is momentum and without if not; and beta1."""
    if momentum is None:
        spec.pop("m", None)
        return spec, 0.0
    return {"m": {"bits": 32}, **spec}, momentum


def _optimizer(
    spec,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    *,
    mask,
    weights,
    nonfinite,
    threads,
    shardings,
):
    """What all constructors come to. Hyper-parameters that an optimizer has not are not read."""
    if nonfinite not in core.NONFINITE:
        raise ValueError(f"nonfinite is {nonfinite!r}; it must be one of {list(core.NONFINITE)}")
    if isinstance(weights, str) and weights not in core.WEIGHTS:
        raise ValueError(f"weights is {weights!r}; it must be one of {list(core.WEIGHTS)}")
    if isinstance(shardings, str) and shardings != _PROPAGATE:
        raise ValueError(f"shardings is {shardings!r}; the only name is {_PROPAGATE!r}")
    if shardings == _PROPAGATE and not jax.config.jax_use_shardy_partitioner:
        raise ValueError(
            "shardings='propagate' needs the partitioner Shardy, which is JAX's from 0.7 on"
            " (jax_use_shardy_partitioner)"
        )
    rule = _Rule(
        *(learning_rate, b1, b2, eps, weight_decay),
        *(mask, core.Spec(spec), weights, nonfinite, threads or 0, shardings),
    )
    return Optimizer(rule)


class Optimizer(optax.GradientTransformationExtraArgs):
    """What the constructors return: an optax optimizer that can also step in place.

    init(params): the state before the first step. Only shapes, dtypes and shardings matter.
    update(grads, state, params, **arguments): one step in optax's form: returns what is to be added
        to the parameters (in their dtype), and the state. Takes what `apply` takes, and passes over
        arguments that are others'. With 16-bit parameters `apply` is more exact: it rounds once.
        Parameters and gradients in float64 are stepped in float32.
    spec: the `lowbit.Spec`.
    """

    def __new__(cls, rule):
        made = super().__new__(cls, rule.init, rule.update)
        made._rule = rule
        return made

    @property
    def spec(self):
        return self._rule.spec

    def plan(self, params):
        """The `lowbit.Plan` of all parameters (arrays or shapes): its `report()` says what each
        got and why, `state_bytes` how much memory the states take."""
        return self._rule.plan(params)

    def apply(
        self,
        grads,
        state,
        params,
        *,
        learning_rate=None,
        grad_scale=1.0,
        clip_factor=1.0,
        skip=False,
    ):
        """One step: returns new parameters and state, in place where `params` and `state` are
        donated.

        grads: a tree like `params`, float32, bfloat16 or float16; need not have the parameters'
            dtypes.
        learning_rate: instead of the optimizer's.
        grad_scale, clip_factor: the gradients are multiplied by both.
        skip: a bool; if true, nothing changes, the count included.
        """
        return self._rule.step(
            "param",
            grads,
            state,
            params,
            learning_rate=learning_rate,
            grad_scale=grad_scale,
            clip_factor=clip_factor,
            skip=skip,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Rule:
    """The arguments of an optimizer, and what is done with them."""

    learning_rate: Any
    b1: Any
    b2: Any
    eps: Any
    weight_decay: Any
    mask: Any
    spec: core.Spec
    weights: Any
    nonfinite: str
    threads: int
    shardings: Any

    def plan(self, params):
        return _plan(self.spec, tuple(self._tensors(params, params)))

    def init(self, params):
        plan = self.plan(params)
        layout = self._layout(params, plan.tensors)
        treedef = jax.tree.structure(params)

        def make():
            zeros = [jnp.zeros(info.shape, info.numpy_dtype) for info in plan.buffers]
            if layout is not None:
                zeros = [
                    layout.place(zero, spec)
                    for zero, spec in zip(zeros, layout.buffer_specs(plan), strict=True)
                ]
            return self.state(plan, treedef, zeros, 0)

        # Only a program can make an array on devices of several processes.
        return make() if layout is None else jax.jit(make)()

    def update(
        self,
        grads,
        state,
        params=None,
        *,
        learning_rate=None,
        grad_scale=1.0,
        clip_factor=1.0,
        skip=False,
        **_,
    ):
        def narrow(leaf):
            return leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf

        updates, state = self.step(
            "update",
            jax.tree.map(narrow, grads),
            state,
            jax.tree.map(narrow, params),
            learning_rate=learning_rate,
            grad_scale=grad_scale,
            clip_factor=clip_factor,
            skip=skip,
        )
        return jax.tree.map(lambda update, param: update.astype(param.dtype), updates, params), state

    def step(
        self, output, grads, state, params, *, learning_rate, grad_scale, clip_factor, skip
    ):
        if params is None:
            raise ValueError("the step needs the parameters: pass params")
        _register()
        treedef = jax.tree.structure(params)
        decays = _spread(self.mask, params, True)
        tensors = [
            tensor._replace(group=0 if decay else 1)
            for tensor, decay in zip(self._tensors(params, grads), decays, strict=True)
        ]
        layout = self._layout(params, tensors)
        params, grads = treedef.flatten_up_to(params), treedef.flatten_up_to(grads)
        for tensor, param in zip(tensors, params):
            if param.dtype == jnp.float64:
                raise TypeError(
                    f"the parameter {tensor.name} has dtype float64, which only `update` takes"
                )
        if learning_rate is None:
            learning_rate = self.learning_rate
        if callable(learning_rate):
            learning_rate = learning_rate(state.count)
        nonfinite = self.nonfinite
        if nonfinite == "skip_step":
            # A call sees its own tensors only, so the step's fate is decided here.
            skip = jnp.logical_or(skip, ~_squares_are_finite(grads, grad_scale, clip_factor))
            nonfinite = "default"
        # One row for each group: what decays, and what does not.
        rows = [
            [learning_rate, self.b1, self.b2, self.eps, decay, grad_scale, clip_factor, skip]
            for decay in (self.weight_decay, 0.0)
        ]
        step = state.count + 1
        slots = _slots(treedef, state)
        outputs, skipped = list(params), state.skipped
        options = {"output": output, "nonfinite": nonfinite, "threads": self.threads}
        # Empty tensors have nothing to update.
        filled = [i for i, param in enumerate(params) if param.size > 0]
        for members in _chunks(filled, layout):
            plan = _plan(self.spec, tuple(tensors[i] for i in members))
            hyper = [value for row in rows[: plan.group_count] for value in row]
            hyper = jnp.stack([jnp.asarray(value, jnp.float32).reshape(()) for value in hyper])
            operands = (
                [params[i] for i in members],
                [grads[i] for i in members],
                [slots[_slot(info)][members[info.tensor]] for info in plan.buffers],
            )
            if layout is None:
                call = _call_propagated if self.shardings == _PROPAGATE else _call
                new_params, buffers, counts = call(plan, options, hyper, step, *operands)
            else:
                new_params, buffers, counts = _call_sharded(
                    plan, layout.of(members), options, hyper, step, *operands
                )
            for i, param in zip(members, new_params):
                outputs[i] = param
            for info, buffer in zip(plan.buffers, buffers):
                slots[_slot(info)][members[info.tensor]] = buffer
            skipped = skipped + counts
        count = jnp.where(jnp.asarray(skip, bool), state.count, step)
        return treedef.unflatten(outputs), _unflatten(treedef, slots, count, skipped)

    def _layout(self, params, tensors):
        """How the parameters lie on a mesh; None if on none."""
        leaves = jax.tree.leaves(params)
        if self.shardings is None or self.shardings == _PROPAGATE:
            shardings = [_shards.sharding_of(leaf) for leaf in leaves]
        else:
            shardings = _spread(self.shardings, params, None)
        return _shards.layout(self.spec, tensors, shardings, _plan)

    def _tensors(self, params, grads):
        """A core.Tensor for each leaf."""
        paths, treedef = jax.tree_util.tree_flatten_with_path(params)
        forms = _spread(None if isinstance(self.weights, str) else self.weights, params, "plain")
        tensors = []
        for (path, param), grad, form in zip(
            paths, treedef.flatten_up_to(grads), forms, strict=True
        ):
            name = path_name(path)
            if grad.shape != param.shape:
                raise ValueError(
                    f"the gradient of {name} has shape {grad.shape}, the parameter {param.shape}"
                )
            dtypes = _dtype(param, f"the parameter {name}"), _dtype(grad, f"the gradient of {name}")
            if isinstance(self.weights, str) and dtypes[0] != "f32":
                form = self.weights
            if form not in core.WEIGHTS:
                raise ValueError(
                    f"weights of {name} is {form!r}; it must be one of {list(core.WEIGHTS)}"
                )
            tensors.append(core.Tensor(name, tuple(param.shape), *dtypes, form))
        return tensors

    def state(self, plan, treedef, buffers, count):
        """A state of the plan's buffers, with dummies where there is none or an empty one.

        Which trees it has follows from the spec and, for tensors of at most two axes, from
        nothing else: optax.tree_utils.tree_map_params compares with the state of a placeholder.
        """

        def dummies(dtype=jnp.float32):
            # Checkpoint libraries refuse arrays without elements, donation one array twice.
            return [jnp.zeros((1,), dtype) for _ in range(treedef.num_leaves)]

        slots = {}
        for moment in _moments(json.loads(self.spec.json)):
            slots[moment, "codes"] = dummies(jnp.uint8)
            slots[moment, "scales"] = dummies()
            for i in range(_axis_count(plan, moment)):
                slots[moment, f"axis{i}"] = dummies()
        if self.weights is not None:
            slots[_WEIGHTS_SLOT] = dummies()
        for info, buffer in zip(plan.buffers, buffers):
            if buffer.size > 0:
                slots[_slot(info)][info.tensor] = buffer
        count, skipped = jnp.asarray(count, jnp.int32), jnp.zeros((2,), jnp.int32)
        return _unflatten(treedef, slots, count, skipped)


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
    return optimizer._rule.state(plan, jax.tree.structure(params), arrays, count)


# --- the custom call -----------------------------------------------------------------------------


@functools.cache
def _register():
    """Makes the handlers known to XLA, once for each process."""
    # The backends start first: one that is refused a handler while it starts does not start at all.
    jax.devices()
    handler = jax.ffi.pycapsule(library().lowbit_xla_step)
    jax.ffi.register_ffi_target(_TARGET, handler, platform="cpu")
    # Initialized before each execution, as kernels may not be loaded in a capture. That it may be
    # captured, the handler says itself.
    handler = jax.ffi.pycapsule(library().lowbit_xla_step_cuda)
    stages = {"initialize": handler, "execute": handler}
    jax.ffi.register_ffi_target(_TARGET, stages, platform="CUDA")
    handler = jax.ffi.pycapsule(library().lowbit_xla_shard)
    jax.ffi.register_ffi_target(_SHARD_TARGET, handler, platform="cpu")


def _call(plan, options, hyper, step, params, grads, buffers):
    """One custom call: new parameters (or updates), new state buffers, int32[2] of skips."""
    update = options["output"] == "update"
    results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (*params, *buffers)]
    words = plan.scratch_bytes // 4 + _DEVICE_WORDS * len(params)
    results.append(jax.ShapeDtypeStruct((words,), jnp.int32))
    results.append(jax.ShapeDtypeStruct((2, 2), jnp.int32))
    # Operands: hyper, step, params, grads, buffers. Aliased to their results, all are updated in
    # place under donation; without it XLA copies before the call.
    n = len(params)
    aliases = _aliases(2, update, params, grads, buffers)
    call = jax.ffi.ffi_call(
        _TARGET, results, input_output_aliases=aliases, vmap_method="sequential"
    )
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
    return new[:n], new[n:-2], _counts(new[-1])


def _counts(skipped):
    """The handlers' counters, which are 64-bit, the low half of each first."""
    return skipped[:, 0]


def _aliases(first, update, params, grads, buffers):
    """Which operands are their results: parameters, or gradients for updates, and states.

    first: how many operands come before the parameters.
    """
    n = len(params)
    aliases = {first + 2 * n + i: n + i for i in range(len(buffers))}
    for i, (param, grad) in enumerate(zip(params, grads)):
        if not update:
            aliases[first + i] = i
        elif param.dtype == grad.dtype:
            aliases[first + n + i] = i
    return aliases


def _call_sharded(plan, layout, options, hyper, step, params, grads, buffers):
    """The same on a mesh: what each device does with its shards, and what they combine.

    plan: of the whole tensors.
    layout: of the same tensors.
    """
    scalar = PartitionSpec()
    tensors = [shard.spec for shard in layout.shards]
    states = layout.buffer_specs(plan)
    return _shards.shard_map(
        _local_step(plan, layout, options),
        layout.mesh,
        (scalar, scalar, tensors, tensors, states),
        (tensors, states, scalar),
    )(hyper, step, params, grads, buffers)


def _local_step(plan, layout, options):
    """What one device does with its shards: a function of what `_call` takes after `options`."""
    local = _plan(plan.spec, tuple(shard.tensor for shard in layout.shards))

    def body(hyper, step, params, grads, buffers):
        params = [shard.gather(param) for shard, param in zip(layout.shards, params)]
        grads = [shard.gather(grad) for shard, grad in zip(layout.shards, grads)]
        if layout.axes:
            new = _staged(local, layout, options, hyper, step, params, grads, buffers)
        else:
            new = _call(local, options, hyper, step, params, grads, buffers)
        return [shard.cut(param) for shard, param in zip(layout.shards, new[0])], *new[1:]

    return body


def _call_propagated(plan, options, hyper, step, params, grads, buffers):
    """The same where only XLA knows how parameters are sharded, and not before it partitions the
    program: gradients and states follow the parameters then."""

    def partition(mesh, operands, _):
        shardings = [param.sharding for param in operands[2]]
        layout = _shards.layout(plan.spec, plan.tensors, shardings, _plan)
        scalar = NamedSharding(mesh, PartitionSpec())
        tensors = [NamedSharding(mesh, shard.spec) for shard in layout.shards]
        states = [NamedSharding(mesh, spec) for spec in layout.buffer_specs(plan)]
        results = tensors, states, scalar
        return mesh, local_step(layout), results, (scalar, scalar, tensors, tensors, states)

    def local_step(layout):
        places = {(info.tensor, _slot(info)): i for i, info in enumerate(plan.buffers)}

        def body(hyper, step, params, grads, buffers):
            params, buffers, skipped = list(params), list(buffers), jnp.zeros((2,), jnp.int32)
            # Only now is it known which tensors can share a call.
            for members in _chunks(range(len(params)), layout):
                part = _plan(plan.spec, tuple(plan.tensors[i] for i in members))
                held = [places[members[info.tensor], _slot(info)] for info in part.buffers]
                new = _local_step(part, layout.of(members), options)(
                    hyper[: LOWBIT_HYPER_COUNT * part.group_count],
                    step,
                    [params[i] for i in members],
                    [grads[i] for i in members],
                    [buffers[i] for i in held],
                )
                for i, param in zip(members, new[0], strict=True):
                    params[i] = param
                for i, buffer in zip(held, new[1], strict=True):
                    buffers[i] = buffer
                skipped = skipped + new[2]
            return params, buffers, skipped

        return body

    call = custom_partitioning(functools.partial(_call, plan, options))
    call.def_partition(partition, sharding_rule=_sharding_rule(params, buffers))
    new_params, new_buffers, counts = call(hyper, step, list(params), list(grads), list(buffers))
    return new_params, new_buffers, counts


def _sharding_rule(params, buffers):
    """What propagates to what: between parameter, gradient and new parameter, and between a state and
    the new state. What a parameter's axis is in its states is left to the partition."""

    def mappings(arrays, letter):
        return [
            ArrayMapping(*(f"{letter}{i}_{axis}" for axis in range(array.ndim)))
            for i, array in enumerate(arrays)
        ]

    tensors, states = mappings(params, "t"), mappings(buffers, "s")
    hyper, step, counts = ArrayMapping("h"), ArrayMapping(), ArrayMapping("c")
    return SdyShardingRule(
        (hyper, step, *tensors, *tensors, *states),
        (*tensors, *states, counts),
        need_replication_factors=("h", "c"),
    )


def _staged(plan, layout, options, hyper, step, params, grads, buffers):
    """One step by stages, on one device's shards: what `_call` returns."""
    attributes = {
        "plan": _plan_json(plan, options["threads"]),
        "output": options["output"],
        "nonfinite": np.int32(core.NONFINITE[options["nonfinite"]]),
    }
    operands = (hyper, step, layout.offsets(), *params, *grads, *buffers)
    scratch = jnp.zeros((plan.scratch_bytes // 4,), jnp.int32)
    collect = jax.ffi.ffi_call(
        _SHARD_TARGET,
        jax.ShapeDtypeStruct(scratch.shape, scratch.dtype),
        input_output_aliases={len(operands): 0},
        vmap_method="sequential",
    )
    for i, stage in enumerate(plan.stages):
        # The first statistics are a word for each tensor that says whether it has non-finite gradients.
        # Where there are no others, only skip_tensor asks.
        flags_only = i == 0 and stage.count == len(params)
        if flags_only and options["nonfinite"] != "skip_tensor":
            continue
        scratch = collect(*operands, scratch, stage=np.int32(i), **attributes)
        scratch = _shards.combine(scratch, stage, layout.axes)
    update = options["output"] == "update"
    results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (*params, *buffers)]
    results.append(jax.ShapeDtypeStruct((2, 2), jnp.int32))
    apply = jax.ffi.ffi_call(
        _SHARD_TARGET,
        results,
        input_output_aliases=_aliases(3, update, params, grads, buffers),
        vmap_method="sequential",
    )
    new = apply(*operands, scratch, stage=np.int32(-1), **attributes)
    n = len(params)
    blocks, tensors = _counts(new[-1])
    counts = jnp.stack([jax.lax.psum(blocks, layout.axes), jax.lax.pmax(tensors, layout.axes)])
    return new[:n], new[n:-1], counts


def _chunks(indices, layout):
    """The tensors of each call: at most 64, sharded over the same axes."""
    groups = {}
    for i in indices:
        groups.setdefault(() if layout is None else layout.shards[i].axes, []).append(i)
    for members in groups.values():
        for at in range(0, len(members), _TENSORS_PER_CALL):
            yield members[at : at + _TENSORS_PER_CALL]


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
# A slot is one tree of a state, ("m", "codes") or ("v", "axis0"); inside a step, states are lists
# of leaves by slot.

_WEIGHTS_SLOT = ("weights", "weights")

#: The parts of buffers that are not slots themselves.
_PLACES = {
    "value": "scales",
    "maximum": "axis0",
    "rows": "axis0",
    "columns": "axis1",
    "mean": "axis2",
}

#: How many trees of vectors a normalization takes for matrices.
_AXES = {"tensor": 1, "row": 1, "column": 2, "rank1": 2, "factored": 3}


def _slot(info):
    if info.state == "weights":
        return _WEIGHTS_SLOT
    return info.state, _PLACES.get(info.part, info.part)


def _moments(spec):
    """The states of a spec's JSON form."""
    present = {
        "m": "m" in spec,
        "v": "v" in spec or spec["optimizer"] == "sm3",
        "vmax": spec.get("amsgrad", False),
    }
    return [moment for moment in present if present[moment]]


def _axis_count(plan, moment):
    """How many trees of vectors a moment has."""
    spec = json.loads(plan.spec.json)
    rules = [spec, *spec.get("overrides", [])]
    key = moment[0]  # vmax is kept as v is
    counts = [_AXES.get(rule.get(key, {}).get("normalization"), 0) for rule in rules]
    if spec["optimizer"] == "sm3" and moment == "v":
        counts.append(2)
    places = [place for state, place in map(_slot, plan.buffers) if state == moment]
    counts += [1 + int(place[4:]) for place in places if place.startswith("axis")]
    return max(counts)


def _slots(treedef, state):
    """The leaves of a state by slot."""
    slots = {}
    for name in ("m", "v", "vmax"):
        moment = getattr(state, name)
        if moment is None:
            continue
        slots[name, "codes"] = treedef.flatten_up_to(moment.codes)
        slots[name, "scales"] = treedef.flatten_up_to(moment.scales)
        for i, tree in enumerate(moment.axes):
            slots[name, f"axis{i}"] = treedef.flatten_up_to(tree)
    if state.weights is not None:
        slots[_WEIGHTS_SLOT] = treedef.flatten_up_to(state.weights)
    return slots


def _unflatten(treedef, slots, count, skipped):
    """The reverse of `_slots`."""
    trees = {slot: treedef.unflatten(leaves) for slot, leaves in slots.items()}

    def moment(name):
        if (name, "codes") not in trees:
            return None
        axes = [slot for slot in trees if slot[0] == name and slot[1].startswith("axis")]
        return Moment(
            trees[name, "codes"], trees[name, "scales"], tuple(trees[slot] for slot in axes)
        )

    weights = trees.get(_WEIGHTS_SLOT)
    return State(count, moment("m"), moment("v"), moment("vmax"), weights, skipped)


def _spread(choice, params, default):
    """A choice for each leaf: given by a tree or a prefix of one, by a function, or by none."""
    if callable(choice):
        choice = choice(params)
    if choice is None:
        return [default] * jax.tree.structure(params).num_leaves
    spread = jax.tree.map(lambda value, tree: jax.tree.map(lambda _: value, tree), choice, params)
    return jax.tree.leaves(spread)


def path_name(path):
    """A tensor's name: its path in a tree of parameters, joined by dots."""
    return ".".join(_key(key) for key in path)


def _key(key):
    """A step of a path as text: `a` of a dict, `0` of a list, `w` of an object."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _dtype(leaf, what):
    dtypes = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f32"}
    dtype = dtypes.get(jnp.dtype(leaf.dtype).name)
    if dtype is None:
        raise TypeError(f"{what} has dtype {leaf.dtype}; it must be one of {list(dtypes)}")
    return dtype


@functools.cache
def _plan(spec, tensors):
    """Plans are kept, as those of the library's handler are: one for each distinct model."""
    return core.Plan(spec, tensors)
