"""The CPU's memory, as tensors of other libraries hand it out by DLPack (dlpack.h, 0.x and 1.x)."""

import ctypes
from typing import Any, NamedTuple

_CPU, _CUDA_HOST, _CUDA_MANAGED = 1, 3, 13
_READ_ONLY = 1


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype_code", ctypes.c_uint8),
        ("dtype_bits", ctypes.c_uint8),
        ("dtype_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = [
        ("tensor", _Tensor),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


class Memory(NamedTuple):
    """A tensor's memory.

    address, bytes: where it is.
    writeable: whether its owner allows writes.
    owner: keeps it alive.
    """

    address: int
    bytes: int
    writeable: bool
    owner: Any


def memory(tensor, what):
    """The Memory of an object with `__dlpack__`, without a copy.

    what: its name in messages.

    Raises TypeError if it has no `__dlpack__`, ValueError if it is not in the CPU's memory or not
    contiguous, and what its library raises if that does not hand it out.
    """
    if not hasattr(tensor, "__dlpack__"):
        raise TypeError(f"{what} is a {type(tensor).__name__}: neither a numpy array nor in DLPack")
    try:
        capsule = tensor.__dlpack__(max_version=(1, 0))
    except TypeError:
        # The protocol before 1.0 has no such argument.
        capsule = tensor.__dlpack__()
    name = _name(capsule)
    if name == b"dltensor_versioned":
        managed = _Versioned.from_address(_pointer(capsule, name))
        if managed.major != 1:
            raise ValueError(f"{what} is in DLPack {managed.major}.{managed.minor}, not in 1.x")
        writeable = not managed.flags & _READ_ONLY
    elif name == b"dltensor":
        managed, writeable = _Managed.from_address(_pointer(capsule, name)), True
    else:
        raise TypeError(f"{what} gives a capsule {name!r} instead of a tensor of DLPack")
    found = managed.tensor
    if found.device_type not in (_CPU, _CUDA_HOST, _CUDA_MANAGED):
        raise ValueError(
            f"{what} is on DLPack's device ({found.device_type}, {found.device_id}), not in the"
            " CPU's memory"
        )
    shape = found.shape[: found.ndim]
    count = 1
    for axis in reversed(range(found.ndim)):
        if found.strides and shape[axis] > 1 and found.strides[axis] != count and 0 not in shape:
            raise ValueError(f"{what} is not C-contiguous")
        count *= shape[axis]
    address = (found.data or 0) + found.byte_offset
    bits = count * found.dtype_bits * found.dtype_lanes
    # The capsule frees what it points to, as nobody has taken it over.
    return Memory(address, bits // 8, writeable, capsule)


_name = ctypes.pythonapi.PyCapsule_GetName
_name.restype, _name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
