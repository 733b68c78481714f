"""As much of torch as the parts use, on the host's memory: for a rehearsal with the mock driver of
tests/cuda, which runs kernels at once and whose device memory is the host's. Not for a GPU."""

import contextlib
import ctypes
import functools
import types
import weakref

import numpy as np

__version__ = "rehearsal"
version = types.SimpleNamespace(cuda="mock")

uint8, int32, int64, float32 = (np.dtype(t) for t in (np.uint8, np.int32, np.int64, np.float32))
#: Its bytes only.
bfloat16 = np.dtype(np.uint16)


def device(kind, index):
    return f"{kind}:{index}"


class Tensor:
    """An array of the mock's device memory."""

    def __init__(self, array):
        self.array = array

    def data_ptr(self):
        return self.array.ctypes.data

    def numel(self):
        return self.array.size

    def element_size(self):
        return self.array.itemsize

    def cpu(self):
        _driver().mock_use_primary_context()
        return Tensor(self.array.copy())

    def numpy(self):
        return self.array

    def view(self, dtype):
        return Tensor(self.array.view(dtype))

    def clone(self):
        return Tensor(self.array.copy())

    def copy_(self, other, non_blocking=False):
        self.array[...] = other.array
        return self

    def fill_(self, value):
        self.array[...] = value
        return self

    def zero_(self):
        return self.fill_(0)

    def add_(self, value):
        at = self.array
        _driver().mock_enqueue_add(ctypes.c_void_p(at.ctypes.data), ctypes.c_int32(value))
        return self

    def normal_(self, generator):
        """Some numbers."""
        numbers = np.random.default_rng(1).standard_normal(self.array.size, np.float32)
        whole = self.array.itemsize == 4
        self.array[...] = numbers if whole else numbers.view(np.uint32) >> 16
        return self

    def mul_(self, factor):
        return self

    def __getitem__(self, index):
        return Tensor(self.array[index])


class _Memory:
    """What the device's tensors take."""

    allocated = peak = 0
    total = limit = 1 << 30


class OutOfMemoryError(RuntimeError):
    pass


def _on_device(array):
    if _Memory.allocated + array.nbytes > _Memory.limit:
        raise OutOfMemoryError
    _Memory.allocated += array.nbytes
    _Memory.peak = max(_Memory.peak, _Memory.allocated)
    weakref.finalize(array, _free, array.nbytes)
    return Tensor(array)


def _free(size):
    _Memory.allocated -= size


def _limit(fraction):
    _Memory.limit = fraction * _Memory.total


def _reset_peak():
    _Memory.peak = _Memory.allocated


def empty(size, dtype, device=None, pin_memory=False):
    # What is not written would be seen.
    return _on_device(np.full(size, 0xA5, dtype))


def zeros(size, dtype=float32, device=None):
    return _on_device(np.zeros(size, dtype))


def tensor(values, dtype=float32):
    return Tensor(np.array(values, dtype))


def from_numpy(array):
    return Tensor(array)


def empty_like(tensor):
    return empty(tensor.array.shape, tensor.array.dtype)


class Generator:
    def __init__(self, device):
        pass

    def manual_seed(self, seed):
        return self


@functools.cache
def _driver():
    driver = ctypes.CDLL("libcuda.so.1")
    driver.mock_end_capture.restype = ctypes.c_void_p
    return driver


class _Stream:
    """A number, of which the third hexadecimal digit is the mock's device."""

    count = 0

    def __init__(self):
        _Stream.count += 1
        self.cuda_stream = 0x10000 * _Stream.count

    def record_event(self):
        return _Event()


class _Event:
    """The mock's work is done when a call returns; what asks finds it undone until it waits."""

    def __init__(self, enable_timing=False):
        pass

    def record(self):
        pass

    def synchronize(self):
        pass

    def query(self):
        return False

    def elapsed_time(self, other):
        return 1.0


class _Graph:
    def replay(self):
        _driver().mock_replay(self.handle)


@contextlib.contextmanager
def _graph(graph):
    _driver().mock_begin_capture()
    yield
    graph.handle = ctypes.c_void_p(_driver().mock_end_capture())


cuda = types.SimpleNamespace(
    is_available=lambda: True,
    device_count=lambda: 1,
    get_device_name=lambda device: "mock",
    current_stream=lambda: types.SimpleNamespace(cuda_stream=0),
    synchronize=lambda: None,
    mem_get_info=lambda: (_Memory.total, _Memory.total),
    memory_allocated=lambda: _Memory.allocated,
    max_memory_allocated=lambda: _Memory.peak,
    reset_peak_memory_stats=_reset_peak,
    set_per_process_memory_fraction=_limit,
    OutOfMemoryError=OutOfMemoryError,
    stream=lambda stream: contextlib.nullcontext(),
    graph=_graph,
    _sleep=lambda cycles: None,
    Stream=_Stream,
    Event=_Event,
    CUDAGraph=_Graph,
)
