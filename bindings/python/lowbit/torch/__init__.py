"""Optimizers for PyTorch whose states are kept in 4 bits.

    from lowbit.torch import AdamW4bit

    optimizer = AdamW4bit(model.parameters(), lr=1e-3)

They are subclasses of `torch.optim.Optimizer` and take its place: with parameter groups,
schedulers, closures, hooks, `GradScaler` and `state_dict`.
"""

from .checkpoint import load, save
from .optimizers import (
    SM3,
    Adafactor,
    Adam4bit,
    Adam8bit,
    AdamW4bit,
    AdamW8bit,
    Factor4bit,
    Lion4bit,
    Lion8bit,
    SGD4bit,
    SGD8bit,
)
from .release import release

__all__ = [
    "SM3",
    "Adafactor",
    "Adam4bit",
    "Adam8bit",
    "AdamW4bit",
    "AdamW8bit",
    "Factor4bit",
    "Lion4bit",
    "Lion8bit",
    "SGD4bit",
    "SGD8bit",
    "load",
    "release",
    "save",
]
