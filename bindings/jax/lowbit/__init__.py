"""Optimizer state in 4 bits (or 32), stepped by fused kernels.

`lowbit.jax` has the optimizers for JAX and is the only module that imports JAX; `lowbit.torch` has
those for PyTorch and is the only one that imports torch. This one wraps the library itself: `Plan` says what states a list of tensors gets, and steps, saves and loads them as
numpy arrays.

The shared library is the file that the environment's `LOWBIT_LIBRARY` names, else the one in the
package's folder.
"""

from ._library import Error, library_path, version
from .core import BufferInfo, Context, Place, Plan, Spec, StageInfo, Tensor

__all__ = [
    "BufferInfo",
    "Context",
    "Error",
    "Place",
    "Plan",
    "Spec",
    "StageInfo",
    "Tensor",
    "library_path",
    "version",
]
