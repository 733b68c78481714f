"""Gradient release: each parameter steps as soon as its gradient is there, and the gradient goes.

Gradients of one layer or so are then alive at a time. Needs torch 2.1.
"""

import torch

from .optimizer import Stepper


class release:
    """Lets parameters step inside `backward`, until it is removed or its `with` block ends.

        with lowbit.torch.release(optimizer):
            for x, y in data:
                loss(model(x), y).backward()

    optimizer: one of lowbit. Its `step`, if it is still called, finds no gradients.

    The bits are those of ordinary steps. What needs all gradients before the first step does not
    work with it: accumulation over several backwards, clipping by global norm, GradScaler.

    Raises ValueError if parameters are DTensors, or if nonfinite is "skip_step".
    """

    def __init__(self, optimizer):
        self._handles = []
        for group in optimizer.param_groups:
            if group["nonfinite"] == "skip_step":
                raise ValueError("nonfinite='skip_step' needs all gradients before the first step")
            if any(hasattr(param, "device_mesh") for param in group["params"]):
                raise ValueError("gradients of DTensors cannot be released")
        for index, group in enumerate(optimizer.param_groups):
            for param in group["params"]:
                if param.requires_grad:
                    hook = _hook(optimizer, Stepper(), index)
                    self._handles.append(param.register_post_accumulate_grad_hook(hook))

    def remove(self):
        """Ends it."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()


def _hook(optimizer, stepper, index):
    @torch.no_grad()
    def hook(param):
        # The group is looked up now, as loading a state replaces it.
        stepper.step(optimizer, [param], [optimizer.param_groups[index]])
        param.grad = None

    return hook
