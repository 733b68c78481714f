"""A running torch.optim.AdamW or Adam becomes one of lowbit, and the other way round."""

import torch

from ._batch import local

#: torch's names of the states.
_KEYS = {"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"}

#: Options of groups that are ours, or torch's choice of an implementation.
_OURS = ("spec", "weights", "nonfinite")
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay")


def from_torch(cls, torch_cls, optimizer, params, options):
    """An optimizer of class `cls` with the groups and the states of one of torch's.

    params: those of the new optimizer in the same order; None: the same ones.
    options: further arguments of `cls`.
    """
    if not _is(optimizer, torch_cls):
        raise TypeError(
            f"{cls.__name__} takes over a torch.optim.{torch_cls.__name__}, not a"
            f" {type(optimizer).__name__}"
        )
    old = [param for group in optimizer.param_groups for param in group["params"]]
    new = old if params is None else list(params)
    if len(new) != len(old):
        raise ValueError(f"params has {len(new)} parameters, the optimizer {len(old)}")
    pairs = iter(new)
    groups = []
    for group in optimizer.param_groups:
        kept = {key: value for key, value in group.items() if key not in _IMPLEMENTATION}
        groups.append({**kept, "params": [next(pairs) for _ in group["params"]]})
    found = cls(groups, **options)
    known = {}
    for theirs, ours in zip(old, new):
        if state := optimizer.state.get(theirs):
            known[ours] = state
            found.state[ours]["step"] = torch.tensor(int(local(state["step"])), dtype=torch.int32)
    for batch in found.batches():
        # Without a step there is nothing to take over.
        if int(batch.counter) > 0:
            states = [known[param] for param in batch.params]
            for name in _moments(batch):
                batch.compress(name, (state[_KEYS[name]] for state in states))
    return found


def to_torch(torch_cls, optimizer, options):
    """One of torch's optimizers with the groups and the states of one of lowbit.

    options: further arguments of `torch_cls`.
    """
    groups = []
    for group in optimizer.param_groups:
        skip = (*_OURS, *_IMPLEMENTATION)
        groups.append({key: value for key, value in group.items() if key not in skip})
    found = torch_cls(groups, **options)
    group_of = {param: group for group in found.param_groups for param in group["params"]}
    for batch in optimizer.batches():
        count = float(batch.counter)
        if count == 0:
            continue
        for param in batch.params:
            group = group_of[param]
            on_device = group.get("capturable") or group.get("fused")
            device = local(param).device if on_device else "cpu"
            step = torch.tensor(count, dtype=torch.float32, device=device)
            found.state[param] = {"step": step}
        for name in _moments(batch):
            for param, values in zip(batch.params, batch.decompress(name)):
                found.state[param][_KEYS[name]] = _like(values, param)
    return found


def _moments(batch):
    """The states of a batch that torch has, too."""
    states = {info.state for info in batch.plan.buffers}
    return [name for name in _KEYS if name in states]


def _like(values, param):
    return torch.empty_like(param, requires_grad=False).copy_(values)


def _is(optimizer, torch_cls):
    """AdamW is a kind of Adam in newer versions of torch."""
    if torch_cls is torch.optim.Adam and isinstance(optimizer, torch.optim.AdamW):
        return False
    decoupled = [group.get("decoupled_weight_decay", False) for group in optimizer.param_groups]
    if torch_cls is torch.optim.Adam and any(decoupled):
        return False
    return isinstance(optimizer, torch_cls)
