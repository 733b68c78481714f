"""The checkpoint file that every language reads and writes."""

import ctypes
import os

from .. import _c_api
from .._library import call


def save(path, optimizer):
    """Writes a checkpoint of an optimizer's states (not of the parameters), whole or not at all.

    Tensors have the names of the parameters: give the optimizer `model.named_parameters()` for a
    file that another program is to read.

    Raises ValueError if the states are not those of one plan, lowbit.Error if the file cannot be
    written.
    """
    batch = _single(optimizer)
    states, count, stream = batch.state_table()
    step = int(batch.counter)
    call(
        "lowbit_checkpoint_save",
        *(batch.plan.handle, states, count, step, os.fsencode(path), stream),
    )


def load(path, optimizer):
    """Reads a checkpoint that any language has written for tensors of these names and shapes under
    this spec, in any order, into an optimizer; returns the number of steps done.

    Raises lowbit.Error, with the states as they were, unless the file is sound and of this model.
    """
    batch = _single(optimizer)
    states, count, stream = batch.state_table()
    info = _c_api.lowbit_checkpoint_info_t.init()
    call(
        "lowbit_checkpoint_load",
        *(batch.plan.handle, os.fsencode(path), states, count, stream, ctypes.byref(info)),
    )
    batch.counter.fill_(info.step)
    return info.step


def _single(optimizer):
    batches = optimizer.batches()
    if len(batches) != 1 or batches[0].sharded:
        raise ValueError(
            "a checkpoint file is of whole tensors with one spec and one count of steps; this"
            " optimizer has shards, several specs or devices, or parameters that missed steps: use"
            " state_dict and torch.save or torch.distributed.checkpoint"
        )
    return batches[0]
