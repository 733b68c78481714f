"""Plans of the CUDA backend that step torch tensors, each beside a plan of the CPU reference.

Tensors are bytes here: what the numbers are is the library's business, and bits are compared.
"""

import ctypes
import functools
import math

import numpy as np
from lowbit import Plan, Spec, _c_api, version
from lowbit._library import call, create
from lowbit.core import NONFINITE, WEIGHTS

try:
    import torch
except ImportError as error:
    raise ImportError(f"this part needs PyTorch built with CUDA: {error}") from error
if not torch.cuda.is_available():
    raise RuntimeError(
        f"this part needs PyTorch with CUDA, and torch {torch.__version__} here has"
        f" {'no CUDA device' if torch.version.cuda else 'been built without CUDA'}"
    )

DEVICE = torch.device("cuda", 0)

#: What a torch part ran on and with.
ENVIRONMENT = {
    "lowbit": version(),
    "torch": torch.__version__,
    "torch_cuda": str(torch.version.cuda),
    "numpy": np.__version__,
    "gpu": torch.cuda.get_device_name(DEVICE),
}

_DTYPES = {
    "f32": _c_api.LOWBIT_DTYPE_F32,
    "bf16": _c_api.LOWBIT_DTYPE_BF16,
    "f16": _c_api.LOWBIT_DTYPE_F16,
}


# ---- memory --------------------------------------------------------------------------------------


def to_device(array, shift=0):
    """The bytes of a numpy array; `shift` moves them off the allocator's alignment."""
    array = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    memory = torch.empty(array.size + shift, dtype=torch.uint8, device=DEVICE)
    return memory[shift:].copy_(torch.from_numpy(array))


def zeros(size):
    return torch.zeros(size, dtype=torch.uint8, device=DEVICE)


def to_host(tensor):
    """The bytes of a tensor, after the work of the current stream."""
    return tensor.cpu().numpy()


def require_same(what, tensor, array):
    """Raises unless a tensor has the bytes of a numpy array. Returns their number."""
    found = to_host(tensor)
    expected = array.reshape(-1).view(np.uint8)
    if found.size != expected.size:
        raise AssertionError(f"{what} has {found.size} bytes, the reference {expected.size}")
    different = np.flatnonzero(found != expected)
    if different.size:
        element = different[0] // array.itemsize
        at = slice(element * array.itemsize, (element + 1) * array.itemsize)
        raise AssertionError(
            f"{what}: {different.size} of {found.size} bytes differ from the reference, first in"
            f" element {element}: {found[at].tobytes().hex()}, not {expected[at].tobytes().hex()}"
        )
    return found.size


# ---- plans ---------------------------------------------------------------------------------------


class Context:
    """The device with the kernels loaded."""

    def __init__(self):
        self.handle = create(self, "context", "lowbit_context_create_cuda", None)


@functools.cache
def context():
    """The one context of all plans."""
    return Context()


class DevicePlan:
    """A plan of the CUDA backend.

    spec: a Spec, or what makes one. tensors: a list of lowbit.Tensor.

    reference: the same plan on the CPU, by the code that defines the results.
    """

    def __init__(self, spec, tensors):
        self.spec = spec if isinstance(spec, Spec) else Spec(spec)
        self.tensors = tuple(tensors)
        self.reference = Plan(self.spec, self.tensors, variant="reference")
        array = (_c_api.lowbit_tensor_info_t * len(self.tensors))(
            *(
                _c_api.lowbit_tensor_info_t.init(
                    name=tensor.name.encode(),
                    ndim=len(tensor.shape),
                    param_dtype=_DTYPES[tensor.param_dtype],
                    grad_dtype=_DTYPES[tensor.grad_dtype],
                    weights=WEIGHTS[tensor.weights],
                    group=tensor.group,
                    **{
                        name: (ctypes.c_int64 * len(extents))(*extents)
                        for name in ("shape", "global_shape", "offset")
                        if (extents := getattr(tensor, name)) is not None
                    },
                )
                for tensor in self.tensors
            )
        )
        self.handle = create(
            *(self, "plan", "lowbit_plan_create"),
            *(context().handle, self.spec.handle, array, len(array)),
        )
        self.sizes = _c_api.lowbit_plan_info_t.init()
        call("lowbit_plan_info", self.handle, ctypes.byref(self.sizes))

    def state(self):
        """The initial state."""
        return DeviceState(self)

    def arguments(
        self,
        params,
        grads,
        state,
        *,
        updates=None,
        hyper=None,
        step_number=None,
        nonfinite="default",
        **values,
    ):
        """The arguments of a step on lists of tensors, which the caller keeps alive.

        hyper, step_number: tensors that have the hyper-parameters and the step in device memory.
        values: other fields of lowbit_step_args_t: step, lr, ...
        """
        arguments = _c_api.lowbit_step_args_t.init(
            tensor_count=len(params),
            params=buffers(params),
            grads=buffers(grads),
            updates=None if updates is None else buffers(updates),
            buffer_count=len(state.buffers),
            state=buffers(state.buffers),
            scratch=buffers([state.scratch])[0],
            nonfinite=NONFINITE[nonfinite],
            skipped=ctypes.cast(state.skipped.data_ptr(), ctypes.POINTER(ctypes.c_int64)),
            **values,
        )
        if hyper is not None:
            arguments.hyper = ctypes.cast(hyper.data_ptr(), ctypes.POINTER(ctypes.c_float))
            arguments.step_number = ctypes.cast(
                step_number.data_ptr(), ctypes.POINTER(ctypes.c_int32)
            )
        return arguments

    def launch(self, arguments, stream=None, entry=("lowbit_step",)):
        """Enqueues a step on a torch stream; None is the current one.

        entry: the function, and what it takes between the arguments and the stream.
        """
        stream = torch.cuda.current_stream() if stream is None else stream
        function, *between = entry
        call(function, self.handle, ctypes.byref(arguments), *between, stream.cuda_stream)

    def step(self, params, grads, state, *, stream=None, **keywords):
        """Enqueues a step; the keywords are those of `arguments`."""
        self.launch(self.arguments(params, grads, state, **keywords), stream)


class DeviceState:
    """What a step of a plan needs besides parameters and gradients.

    buffers: the state buffers. scratch: for one step in flight. skipped: the two counters.
    """

    def __init__(self, plan):
        self.buffers = [
            zeros(math.prod(info.shape) * info.numpy_dtype.itemsize)
            for info in plan.reference.buffers
        ]
        # It need not be cleared: what a kernel reads before it is written would be seen.
        self.scratch = torch.empty(plan.sizes.scratch_bytes, dtype=torch.uint8, device=DEVICE)
        self.skipped = torch.zeros(2, dtype=torch.int64, device=DEVICE)


def buffers(tensors):
    """Addresses and sizes of tensors, as the C ABI takes them."""
    array = (_c_api.lowbit_buffer_t * len(tensors))()
    for buffer, tensor in zip(array, tensors):
        buffer.data, buffer.bytes = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    return array
