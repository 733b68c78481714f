"""The step as one operator of torch, which `torch.compile` takes whole.

Hyper-parameters are read when the operator runs, so that a scheduler causes no compilation. Needs
torch 2.4; before, a compiled step is a graph break.
"""

import itertools
import weakref
from typing import Sequence

import torch

_numbers = itertools.count()
_optimizers = weakref.WeakValueDictionary()


def number(optimizer):
    """A number by which the operator finds the optimizer."""
    found = next(_numbers)
    _optimizers[found] = optimizer
    return found


_SUPPORTED = hasattr(torch.library, "custom_op")


def is_compiling():
    """Whether the operator is to be called."""
    return _SUPPORTED and torch.compiler.is_compiling()


if _SUPPORTED:

    @torch.library.custom_op("lowbit::step_", mutates_args=("params",))
    def step_(
        params: Sequence[torch.Tensor],
        grads: Sequence[torch.Tensor],
        indices: Sequence[int],
        optimizer: int,
    ) -> None:
        """One step of parameters of an optimizer.

        params, grads: of this process; perhaps copies that a compiler made.
        indices: of the parameters among all of the optimizer.
        optimizer: its number.
        """
        _optimizers[optimizer].step_at(indices, params, grads)

    @step_.register_fake
    def _(params, grads, indices, optimizer):
        pass
