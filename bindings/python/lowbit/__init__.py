"""Optimizer state in 4 bits (or 32), stepped by fused kernels.

`lowbit.jax` has the optimizers for JAX, `lowbit.torch` those for PyTorch; no other module imports
those two. This one wraps the library itself: `Plan` says what states a list of tensors gets, and
steps, saves and loads them as numpy arrays; `checkpoint` works on the files.

The shared library is the file that the environment's `LOWBIT_LIBRARY` names, else the one in the
package's folder.
"""

from . import checkpoint
from ._library import Error, library_path, version
from .core import BufferInfo, Context, Plan, Spec, StageInfo, Tensor

__all__ = [
    "BufferInfo",
    "Context",
    "Error",
    "Plan",
    "Spec",
    "StageInfo",
    "Tensor",
    "checkpoint",
    "library_path",
    "version",
]
