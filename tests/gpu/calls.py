"""Every call that takes a stream, on one model, by the device and by the reference."""

import ctypes
import math

import numpy as np
from lowbit import Tensor, _c_api
from lowbit._library import call

from device import DevicePlan, buffers, require_same, to_device, torch

#: The order in lowbit_step_args_t.hyper.
HYPER = ("lr", "beta1", "beta2", "eps", "weight_decay", "grad_scale", "clip_factor", "skip")

MAX_NORM = 0.5

#: Averages of an optimizer of the trainer's own.
AVERAGE = {
    "optimizer": "none",
    "threshold": 0,
    "x": {"bits": 4, "normalization": "block", "block": 128, "mapping": "de"},
}


class Calls:
    """A model that each call changes on the device; `expect` does the same by the reference.

    names: of the calls, each a method with what `enqueue` takes.

    spec, shapes: of the model; parameters are bf16, gradients f32.
    """

    names = (
        "step", "counted_step", "staged_step", "norm_and_clip", "compress", "decompress", "average"
    )  # fmt: skip

    def __init__(self, random, spec="adamw4", shapes=((1024, 1024), (4097,), (100,))):
        self.numels = [math.prod(shape) for shape in shapes]
        tensors = [Tensor(f"t{i}", shape, "bf16", "f32") for i, shape in enumerate(shapes)]
        self.plan = DevicePlan(spec, tensors)
        self.averages = DevicePlan(AVERAGE, tensors)
        hyper = {**random.hyper(), "skip": 0.0}
        self.hyper = np.array([hyper[name] for name in HYPER], np.float32)
        self.params = [random.param(numel, "bf16") for numel in self.numels]
        self.grads = [random.grad(numel, "f32") for numel in self.numels]
        self.values = [random.param(numel, "f32") for numel in self.numels]
        self.means = [np.zeros(numel, np.float32) for numel in self.numels]
        self.state, self.average_state = self.plan.reference.zeros(), self.averages.reference.zeros()
        self.clip = np.zeros(2, np.float32)
        self.step_number = 1
        self.device_params = [to_device(array) for array in self.params]
        self.device_grads = [to_device(array) for array in self.grads]
        self.device_values = [to_device(array) for array in self.values]
        self.device_means = [to_device(array) for array in self.means]
        self.device_state, self.device_average_state = self.plan.state(), self.averages.state()
        self.device_clip = to_device(self.clip)
        self.device_hyper = to_device(self.hyper)
        self.device_step = to_device(np.ones(1, np.int32))
        self.norm_scratch = to_device(np.zeros(_c_api.LOWBIT_NORM_SCRATCH // 8, np.int64))
        torch.cuda.synchronize()

    def enqueue(self, name, stream=None, **options):
        """One call on the device. options: state_name, of `compress` and `average_into_state`."""
        stream = (torch.cuda.current_stream() if stream is None else stream).cuda_stream
        getattr(self, name)(stream, **options)

    def expect(self, name, state_name="m"):
        """The same call by the reference."""
        if name.endswith("step"):
            values = dict(zip(HYPER, map(float, self.hyper)))
            reference, step = self.plan.reference, self.step_number
            reference.step(self.params, self.grads, self.state, step=step, **values)
            self.step_number += name == "counted_step"
        elif name == "norm_and_clip":
            self.clip[:] = reference_norm(self.plan.reference, self.grads)
        elif name == "compress":
            self.plan.reference.compress(state_name, self.values, self.state)
        elif name == "decompress":
            self.values = [a.reshape(-1) for a in self.plan.reference.decompress("m", self.state)]
        elif name == "average_into_state":
            arguments = self._average(
                host_buffers, self.grads, self.means, self.state, state_name
            )
            call("lowbit_ema", self.plan.reference.handle, ctypes.byref(arguments), None)
        else:
            arguments = self._average(host_buffers, self.grads, self.means, self.average_state)
            call("lowbit_ema", self.averages.reference.handle, ctypes.byref(arguments), None)

    def require_same(self):
        """Compares all that the calls write, after all work on the device. Returns the bytes."""
        torch.cuda.synchronize()
        pairs = [
            ("parameter", self.device_params, self.params),
            ("gradient", self.device_grads, self.grads),
            ("state", self.device_state.buffers, self.state),
            ("value", self.device_values, self.values),
            ("average", self.device_means, self.means),
            ("average's state", self.device_average_state.buffers, self.average_state),
            ("norm and clip factor", [self.device_clip], [self.clip]),
            ("step number", [self.device_step], [np.array([self.step_number], np.int32)]),
        ]
        return sum(
            require_same(f"{what} {i}", tensor, array)
            for what, tensors, arrays in pairs
            for i, (tensor, array) in enumerate(zip(tensors, arrays))
        )

    # ---- the calls -----------------------------------------------------------------------------

    def arguments(self, **values):
        """Of a step, all in device memory."""
        return self.plan.arguments(
            *(self.device_params, self.device_grads, self.device_state),
            hyper=self.device_hyper,
            step_number=self.device_step,
            **values,
        )

    def _step(self, stream, *entries, **values):
        arguments = ctypes.byref(self.arguments(**values))
        for name, *between in entries:
            call(name, self.plan.handle, arguments, *between, stream)

    def step(self, stream):
        """Reads the step number, which stays as it is."""
        self._step(stream, ("lowbit_step",))

    def counted_step(self, stream):
        self._step(stream, ("lowbit_step",), flags=_c_api.LOWBIT_STEP_COUNTED)

    def staged_step(self, stream):
        stages = range(self.plan.sizes.stage_count)
        collect = [("lowbit_step_stats", stage) for stage in stages]
        self._step(stream, *collect, ("lowbit_step_apply",))

    def norm_and_clip(self, stream):
        grads = buffers(self.device_grads)
        arguments = norm_arguments(grads, buffers([self.norm_scratch])[0])
        for stage in range(2):
            call("lowbit_norm_stats", self.plan.handle, ctypes.byref(arguments), stage, stream)
        address = self.device_clip.data_ptr()
        results = [
            ctypes.cast(at, ctypes.POINTER(ctypes.c_float)) for at in (address, address + 4)
        ]
        call("lowbit_norm_clip", self.plan.handle, ctypes.byref(arguments), stream, *results)

    def compress(self, stream, state_name="m"):
        values, state = buffers(self.device_values), buffers(self.device_state.buffers)
        call(
            *("lowbit_compress", self.plan.handle, state_name.encode()),
            *(values, len(values), state, len(state), stream),
        )

    def decompress(self, stream):
        values, state = buffers(self.device_values), buffers(self.device_state.buffers)
        call(
            *("lowbit_decompress", self.plan.handle, b"m"),
            *(state, len(state), values, len(values), stream),
        )

    def average(self, stream):
        arguments = self._average(
            *(buffers, self.device_grads, self.device_means, self.device_average_state.buffers)
        )
        call("lowbit_ema", self.averages.handle, ctypes.byref(arguments), stream)

    def average_into_state(self, stream, state_name="m"):
        """Into a state of the optimizer."""
        arguments = self._average(
            *(buffers, self.device_grads, self.device_means, self.device_state.buffers),
            state_name,
        )
        call("lowbit_ema", self.plan.handle, ctypes.byref(arguments), stream)

    @staticmethod
    def _average(make, grads, means, state, state_name="x"):
        return _c_api.lowbit_ema_args_t.init(
            state_name=state_name.encode(),
            tensor_count=len(grads),
            inputs=make(grads),
            outputs=make(means),
            buffer_count=len(state),
            state=make(state),
            decay=0.9,
            weight=0.1,
            step=1,
        )


def norm_arguments(grads, scratch):
    return _c_api.lowbit_norm_args_t.init(
        tensor_count=len(grads), grads=grads, scratch=scratch, grad_scale=0.25, max_norm=MAX_NORM
    )


def reference_norm(plan, grads):
    """Norm and clip factor of numpy arrays."""
    scratch = np.zeros(_c_api.LOWBIT_NORM_SCRATCH // 8, np.int64)
    arguments = norm_arguments(host_buffers(grads), host_buffers([scratch])[0])
    results = (ctypes.c_float * 2)()
    first, second = (
        ctypes.cast(ctypes.byref(results, 4 * i), ctypes.POINTER(ctypes.c_float)) for i in range(2)
    )
    call("lowbit_norm", plan.handle, ctypes.byref(arguments), None, first, second)
    return list(results)


def host_buffers(arrays):
    """Addresses and sizes of numpy arrays, as the C ABI takes them."""
    array = (_c_api.lowbit_buffer_t * len(arrays))()
    for buffer, memory in zip(array, arrays):
        buffer.data, buffer.bytes = memory.ctypes.data, memory.nbytes
    return array
