"""The base of all optimizers: what torch asks of an `Optimizer`, on batches of one call each."""

import torch

from .. import core
from . import _spec, compile
from ._batch import PLAIN, Batch, Member, float_dtype, local
from ._shards import Shards, sharding

#: The arguments that become the group's option `spec`.
_QUANTIZERS = ("spec", "m", "v", "threshold", "seed", "overrides")

#: Options that every optimizer here takes; `documented` puts it below the optimizer's own.
COMMON = """
    params: parameters, pairs of a name and a parameter (`model.named_parameters()`), or groups of
        these as dicts. Without names the parameters are called "0", "1", ...
    maximize: ascend instead.
    foreach, fused, capturable: accepted, as every step is what they ask for: one call for all
        tensors, without a wait for the device, with its counter on the device.
    differentiable: must be False.
    spec: a preset's name or a spec's JSON form as a dict: which states there are and how each is
        kept.
    m, v: how this state is kept instead: a quantizer's JSON form, 32 for float32, or the name of a
        normalization: "block", "rank1", "factored", ...
    overrides: what single parameters get: a dict, or pairs, from a pattern of names, a module or a
        parameter to {"m": quantizer, "v": quantizer} or to 4, 8 or 32 bits. The first wins.
    threshold: parameters of at most this many elements keep float32 states.
    seed: of stochastic rounding.
    weights: what is kept beside 16-bit parameters so that small updates are not lost: "plain" for
        nothing, "stochastic" for random rounding instead, "master", "remainder16" (bfloat16) or
        "correction8" (bfloat16).
    nonfinite: what happens when a gradient is not finite: "default", "skip_block", "skip_tensor",
        "skip_step" or "propagate".
    offload: keep the states of parameters on a device in the host's memory and step them there:
        gradients come down, parameters go down and up, through pinned memory. Waits for the device.
    threads: of the CPU; None: `torch.get_num_threads()`.

    A group may have its own spec, m, v, overrides, threshold, seed, weights and nonfinite. In
    `param_groups` they are one option `spec`, a text, which travels with the state_dict: a loaded
    state keeps its quantizers.

    Parameters that are not contiguous are stepped by way of a copy.

    Raises ValueError and TypeError for arguments that are wrong, lowbit.Error for a wrong spec;
    `step` raises them naming the parameter.
"""


def documented(cls):
    """Adds the options of all optimizers to a docstring."""
    cls.__doc__ = cls.__doc__.rstrip() + "\n" + COMMON
    return cls


class LowbitOptimizer(torch.optim.Optimizer):
    """An optimizer whose states are kept in few bits and stepped by fused kernels.

    The state of a parameter is `step`, an int32 tensor that the parameters which step together
    share, and plain tensors named "m.codes", "m.scales", "v.codes", ...: uint8 codes, float32
    scales.

    Subclasses say which optimizer they are (`_optimizer`), and what its hyper-parameters (`_hyper`)
    and options (`_options`) are in a group.
    """

    # torch's GradScaler then sets grad_scale and found_inf instead of unscaling and waiting.
    _step_supports_amp_scaling = True

    _optimizer = None

    def __init__(
        self,
        params,
        defaults,
        *,
        spec,
        m=None,
        v=None,
        overrides=None,
        threshold=None,
        seed=None,
        weights="plain",
        nonfinite="default",
        offload=False,
        threads=None,
        maximize=False,
        foreach=None,
        capturable=False,
        differentiable=False,
        fused=None,
    ):
        if differentiable:
            raise ValueError("differentiable=True: a step of lowbit cannot be differentiated")
        self._given = {
            "spec": spec,
            "m": m,
            "v": v,
            "threshold": threshold,
            "seed": seed,
            "overrides": overrides,
        }
        self._threads = threads
        self._offload = offload
        self._reset()
        defaults = {
            **defaults,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": False,
            "fused": fused,
            "weights": weights,
            "nonfinite": nonfinite,
        }
        super().__init__(params, defaults)

    def _reset(self):
        self._stepper = Stepper()
        self._number = compile.number(self)

    # --- groups ----------------------------------------------------------------------------------

    def add_param_group(self, param_group):
        """As torch's; a group may have quantizers of its own."""
        if isinstance(param_group, dict):
            param_group = self._resolved(param_group)
        super().add_param_group(param_group)

    def _resolved(self, group):
        """A copy of a group with names apart from parameters and one text for its spec."""
        group = dict(group)
        params = group["params"]
        if isinstance(params, (torch.Tensor, set)):
            # torch makes a list of the one, and refuses the other.
            listed = list(params) if isinstance(params, set) else [params]
        else:
            group["params"] = listed = list(params)
        if listed and all(isinstance(param, tuple) for param in listed):
            # torch does this itself from 2.6 on.
            group["param_names"] = [name for name, _ in listed]
            group["params"] = listed = [param for _, param in listed]
        begin = sum(len(known["params"]) for known in self.param_groups)
        names = group.get("param_names") or [str(begin + i) for i in range(len(listed))]
        given = {key: group.pop(key, self._given[key]) for key in _QUANTIZERS}
        overrides = _spec.named(given.pop("overrides") or (), listed, names)
        group["spec"] = _spec.resolve(optimizer=self._optimizer, overrides=overrides, **given)
        for key, known in (("weights", core.WEIGHTS), ("nonfinite", core.NONFINITE)):
            value = group.get(key, self.defaults[key])
            if value not in known:
                raise ValueError(f"Invalid {key} value: {value!r}; there are {list(known)}")
        return group

    def names(self):
        """A dict from the id of each parameter to its name."""
        found = {}
        for group in self.param_groups:
            names = group.get("param_names")
            for i, param in enumerate(group["params"]):
                found[id(param)] = str(len(found)) if names is None else names[i]
        return found

    def spec_of(self, group):
        """The text of a group's spec, its options included."""
        options = {"maximize": group["maximize"], **self._options(group)}
        return _spec.with_options(group["spec"], tuple(options.items()))

    @staticmethod
    def _hyper(group):
        """lr, beta1, beta2, eps and weight decay of a group."""
        raise NotImplementedError

    def _options(self, group):
        """Keys of the spec that are options of a group."""
        return {}

    # --- step ------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure=None):
        """One step.

        closure: evaluates the model again and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params, groups = [], []
        for group in self.param_groups:
            found = [param for param in group["params"] if param.grad is not None]
            params += found
            groups += [group] * len(found)
        if compile.is_compiling():
            self._compiled_step(params)
        else:
            self._stepper.step(self, params, groups)
        return loss

    def _compiled_step(self, params):
        all_params = [param for group in self.param_groups for param in group["params"]]
        stepped = {id(param) for param in params}
        indices = [i for i, param in enumerate(all_params) if id(param) in stepped]
        grads = [local(_placed_as(param, param.grad)) for param in params]
        compile.step_([local(param) for param in params], grads, indices, self._number)

    def step_at(self, indices, params, grads):
        """One step of some parameters, on tensors that may be copies of theirs."""
        pairs = [(param, group) for group in self.param_groups for param in group["params"]]
        whole, groups = zip(*(pairs[i] for i in indices))
        self._stepper.step_tensors(self, list(whole), list(groups), list(params), list(grads))

    def home(self, param):
        """The device that a parameter's states are on."""
        return torch.device("cpu") if self._offload else local(param).device

    def skipped(self):
        """How many blocks and how many tensors were left as they are because of gradients that
        were not finite, since the optimizer was made or loaded: a pair. Waits for the device."""
        return self._stepper.skipped()

    def batches(self):
        """A list of Batch for all parameters, those without a gradient or a state included."""
        pairs = [(param, group) for group in self.param_groups for param in group["params"]]
        return batches(self, *zip(*pairs))

    # --- states ----------------------------------------------------------------------------------

    def load_state_dict(self, state_dict):
        """As torch's, but states keep their dtypes: torch would cast codes and scales to that of
        the parameter."""
        if hasattr(self, "register_load_state_dict_pre_hook"):
            # After all other hooks.
            hook = self.register_load_state_dict_pre_hook(lambda _, loaded: _sealed(loaded))
            try:
                super().load_state_dict(state_dict)
            finally:
                hook.remove()
        else:
            super().load_state_dict(_sealed(state_dict))

    def __getstate__(self):
        overrides = self._given["overrides"] or ()
        pairs = overrides.items() if isinstance(overrides, dict) else overrides
        # Modules have become names in the groups; they are not for a file.
        given = {**self._given, "overrides": [pair for pair in pairs if isinstance(pair[0], str)]}
        options = {"_given": given, "_threads": self._threads, "_offload": self._offload}
        return {**super().__getstate__(), **options}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._reset()
        for param, values in self.state.items():
            if isinstance(values, _Sealed):
                self.state[param] = values.opened(self.home(param))


class Stepper:
    """Steps parameters of an optimizer, in the batches that it made for them the last time.

    The optimizer is given to every step, and kept by nothing that it keeps: what it holds is freed with it,
    not when Python looks for cycles.
    """

    def __init__(self):
        self._signature = None
        self._batches = []
        self._buffers = {}
        self._contiguous = True
        self._skipped = (0, 0)

    def step(self, optimizer, params, groups):
        """One step.

        params: a list of parameters that have gradients.
        groups: the parameter group of each.
        """
        grads = [param.grad for param in params]
        # Seldom false, and fast to ask of all at once.
        if PLAIN.issuperset(map(type, params)) and PLAIN.issuperset(map(type, grads)):
            return self.step_tensors(optimizer, params, groups, params, grads)
        grads = [local(_placed_as(param, grad)) for param, grad in zip(params, grads)]
        return self.step_tensors(optimizer, params, groups, [local(p) for p in params], grads)

    def step_tensors(self, optimizer, whole, groups, params, grads):
        """As `step`, given what of parameters and gradients is in this process.

        whole: the parameters.
        """
        # All that may change between steps and matters but for addresses. Flat lists: this is most
        # of the time that a step of many small tensors takes. That gradients have the shape and the
        # device of their parameters is torch's doing.
        signature = [
            list(map(id, whole)),
            list(map(id, groups)),
            [param.dtype for param in params],
            [param.get_device() for param in params],
            [param.numel() for param in params],
            [param.is_contiguous() for param in params],
            [grad.dtype for grad in grads],
            [grad.layout for grad in grads],
            [grad.is_contiguous() for grad in grads],
            [(g["weights"], g["nonfinite"], optimizer.spec_of(g)) for g in optimizer.param_groups],
        ]
        if signature != self._signature or not all(
            batch.is_current(optimizer.state) for batch, _ in self._batches
        ):
            self._make(optimizer, whole, groups, params, grads)
            self._signature = signature
        grad_scale = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        for batch, members in self._batches:
            targets, sources = [params[i] for i in members], [grads[i] for i in members]
            work, sources = self._work(optimizer, batch, targets, sources)
            batch.step(work, sources, grad_scale, found_inf)
            for target, copy in zip(targets, work):
                if copy is not target:
                    target.copy_(copy, non_blocking=True)
            # Autograd then knows of the change, as of that by any in-place operation.
            _increment_version(targets)

    def _work(self, optimizer, batch, params, grads):
        """What the step reads and writes: the tensors, or copies where those will not do."""
        if optimizer._offload:
            buffers = self._host_buffers(batch, params, grads)
            for buffer, tensor in zip(buffers, (*params, *grads)):
                buffer.copy_(tensor, non_blocking=True)
            if params[0].device.type == "cuda":
                torch.cuda.current_stream(params[0].device).synchronize()
            return buffers[: len(params)], buffers[len(params) :]
        if self._contiguous:
            return params, grads
        return [p.contiguous() for p in params], [g.contiguous() for g in grads]

    def _host_buffers(self, batch, params, grads):
        """Memory of the host for parameters and gradients, kept from step to step."""
        if batch not in self._buffers:
            self._buffers[batch] = [
                torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda"
                )
                for tensor in (*params, *grads)
            ]
        return self._buffers[batch]

    def _make(self, optimizer, whole, groups, params, grads):
        names = optimizer.names()
        for param, p, g in zip(whole, params, grads):
            name = names[id(param)]
            if p.device.type not in ("cpu", "cuda"):
                raise TypeError(f"the parameter {name} is on {p.device}; it must be on cpu or cuda")
            float_dtype(p.dtype, f"the parameter {name}")
            if g.layout != torch.strided:
                raise TypeError(
                    f"the gradient of {name} is sparse ({g.layout}); lowbit has no sparse steps"
                )
            float_dtype(g.dtype, f"the gradient of {name}")
            if g.shape != p.shape or g.device != p.device:
                raise ValueError(
                    f"the gradient of {name} has shape {tuple(g.shape)} on {g.device}, the"
                    f" parameter {tuple(p.shape)} on {p.device}"
                )
        # What follows may fail; the counts of the old batches are kept once.
        self._skipped, self._batches, self._signature = self.skipped(), [], None
        self._buffers = {}
        self._contiguous = all(tensor.is_contiguous() for tensor in (*params, *grads))
        index = {id(param): i for i, param in enumerate(whole)}
        self._batches = [
            (batch, [index[id(param)] for param in batch.params])
            for batch in batches(optimizer, whole, groups)
        ]

    def skipped(self):
        counts = [self._skipped, *(batch.skipped.tolist() for batch, _ in self._batches)]
        return tuple(map(sum, zip(*counts)))


def batches(optimizer, params, groups):
    """A list of Batch for parameters and the group of each: one for all that have the same device,
    spec, policy, count of steps and sharding."""
    names = optimizer.names()
    counts, sorted_out = {}, {}
    for param, group in zip(params, groups):
        state = optimizer.state[param]
        count = 0
        if "step" in state:
            step = state["step"]
            # Most share one tensor, which is read once.
            count = counts.setdefault(id(step), None)
            if count is None:
                count = counts[id(step)] = int(local(step))
        spec, nonfinite = optimizer.spec_of(group), group["nonfinite"]
        grad_dtype = param.dtype if param.grad is None else param.grad.dtype
        member = Member(names[id(param)], param, state, group, grad_dtype)
        key = (optimizer.home(param), spec, nonfinite, count, sharding(param))
        sorted_out.setdefault(key, []).append(member)
    threads = optimizer._threads or torch.get_num_threads()
    if len(sorted_out) > 1 and any(key[2] == "skip_step" for key in sorted_out):
        raise ValueError(
            "nonfinite='skip_step' needs all parameters in one call: one device, one spec, one"
            " count of steps"
        )
    found = []
    for (device, spec, nonfinite, count, shared), members in sorted_out.items():
        shards = None
        if shared is not None:
            shards = Shards([m.param for m in members], [m.name for m in members], spec)
        options = {"count": count, "nonfinite": nonfinite, "threads": threads, "device": device}
        found.append(Batch(members, spec, optimizer._hyper, shards=shards, **options))
    return found


class _Sealed:
    """A parameter's loaded state, which torch takes for something that it need not cast."""

    def __init__(self, state):
        self._state = state

    def opened(self, device):
        """The state, its tensors on this device."""
        return {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in self._state.items()
        }


def _sealed(state_dict):
    state = {
        key: _Sealed(value) if isinstance(value, dict) else value
        for key, value in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _placed_as(param, grad):
    """A gradient whose shards are those of its parameter."""
    if type(grad) in PLAIN or not hasattr(param, "placements"):
        return grad
    if grad.placements == param.placements:
        return grad
    return grad.redistribute(placements=param.placements)


def _increment_version(tensors):
    increment = getattr(torch.autograd.graph, "increment_version", None)
    if increment is None:
        # Before torch 2.1: a write to no elements of a view, which shares the tensor's version.
        for tensor in tensors:
            tensor.unsqueeze(0)[:0].zero_()
        return
    try:
        increment(tensors)
    except AttributeError:
        # Before 2.4 it takes one at a time.
        for tensor in tensors:
            increment(tensor)
