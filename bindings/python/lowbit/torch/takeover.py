"""A running torch.optim.AdamW or Adam becomes one of lowbit, and the other way round."""

import torch

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
        if group["amsgrad"]:
            raise ValueError("a group has amsgrad: its largest v cannot be taken over")
        kept = {key: value for key, value in group.items() if key not in _IMPLEMENTATION}
        groups.append({**kept, "params": [next(pairs) for _ in group["params"]]})
    found = cls(groups, **options)
    known = {}
    for theirs, ours in zip(old, new):
        if state := optimizer.state.get(theirs):
            known[ours] = state
            found.state[ours]["step"] = torch.tensor(int(state["step"]), dtype=torch.int32)
    for batch in found.batches():
        if batch.sharded:
            raise ValueError("states of DTensors cannot be taken over: take over before sharding")
        for name, key in (("m", "exp_avg"), ("v", "exp_avg_sq")):
            values = [
                known[param][key].to(batch.device, torch.float32).contiguous()
                if param in known
                else torch.zeros(param.shape, device=batch.device)
                for param in batch.params
            ]
            batch.compress(name, values)
    return found


def to_torch(torch_cls, optimizer, options):
    """One of torch's optimizers with the groups and the states of one of lowbit.

    options: further arguments of `torch_cls`.
    """
    groups = []
    for group in optimizer.param_groups:
        if group["amsgrad"]:
            raise ValueError("a group has amsgrad: its largest v cannot be given back")
        skip = (*_OURS, *_IMPLEMENTATION)
        groups.append({key: value for key, value in group.items() if key not in skip})
    found = torch_cls(groups, **options)
    group_of = {param: group for group in found.param_groups for param in group["params"]}
    for batch in optimizer.batches():
        if batch.sharded:
            raise ValueError("states of DTensors cannot be given back")
        count = float(batch.counter)
        if count == 0:
            continue
        moments = zip(batch.params, batch.decompress("m"), batch.decompress("v"))
        for param, m, v in moments:
            group = group_of[param]
            on_device = group.get("capturable") or group.get("fused")
            device = param.device if on_device else "cpu"
            found.state[param] = {
                "step": torch.tensor(count, dtype=torch.float32, device=device),
                "exp_avg": _like(m, param),
                "exp_avg_sq": _like(v, param),
            }
    return found


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
