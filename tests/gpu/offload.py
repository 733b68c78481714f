"""The C ABI's offload: states in pinned host memory, stepped on the host and on the device, against
the reference."""

import ctypes
import math

from lowbit import Plan, Tensor, _c_api
from lowbit._library import call, create

import inputs
from device import (
    ENVIRONMENT,
    DevicePlan,
    buffers,
    context,
    require_same,
    to_device,
    to_host,
    torch,
)

#: Whole and broken blocks, below and above the threshold.
SHAPES = ((70, 130), (101,), (64, 129), (0, 5), (9000,), (3, 50, 70))
STEPS = 3

#: Name, preset, weights.
STATES = (
    ("4 bits", "adamw4-block", "stochastic"),
    ("f32", "adamw32", "master"),
)


def run(report):
    report.environment.update(ENVIRONMENT)
    for name, preset, weights in STATES:
        for on_host in (True, False):
            what = f"{name}, {place(on_host)}"
            report.check(
                *(f"{what}: equals the reference", compare),
                *(report.seed, preset, weights, on_host),
            )


def place(on_host):
    return "stepped on the host" if on_host else "stepped on the device"


class Offload:
    """lowbit_offload on bf16 parameters and gradients in device memory.

    model: (params, grads), lists of tensors.
    """

    def __init__(self, preset, weights, on_host, shapes, model):
        tensors = [
            Tensor(f"t{i}", shape, "bf16", "bf16", weights) for i, shape in enumerate(shapes)
        ]
        self.plan = Plan(preset, tensors, threads=0) if on_host else DevicePlan(preset, tensors)
        self.handle = create(
            *(self, "offload", "lowbit_offload_create"), self.plan.handle, context().handle, 0
        )
        self.info = _c_api.lowbit_offload_info_t.init()
        call("lowbit_offload_info", self.handle, ctypes.byref(self.info))
        self.params, self.grads = model
        self.numel = sum(math.prod(shape) for shape in shapes)
        reference = self.plan if on_host else self.plan.reference
        params = (_c_api.lowbit_buffer_t * (len(shapes) if on_host else 0))()
        self.state = (_c_api.lowbit_buffer_t * len(reference.buffers))()
        call(
            *("lowbit_offload_buffers", self.handle),
            *(params, len(params), self.state, len(self.state)),
        )
        for buffer, param in zip(params, self.params):
            initial = to_host(param.view(torch.uint8))
            ctypes.memmove(buffer.data, initial.ctypes.data, buffer.bytes)
        self.steps = 0

    def run(self):
        self.steps += 1
        arguments = _c_api.lowbit_step_args_t.init(
            tensor_count=len(self.params),
            params=buffers(self.params),
            grads=buffers(self.grads),
            step=self.steps,
        )
        stream = torch.cuda.current_stream().cuda_stream
        call("lowbit_offload_step", self.handle, ctypes.byref(arguments), stream)


def compare(seed, preset, weights, on_host):
    """Some steps of some tensors, without a wait between them."""
    random = inputs.Random(seed)
    numels = [math.prod(shape) for shape in SHAPES]
    params = [random.param(numel, "bf16") for numel in numels]
    grads = [random.grad(numel, "bf16") for numel in numels]
    model = [[to_device(array) for array in arrays] for arrays in (params, grads)]
    offload = Offload(preset, weights, on_host, SHAPES, model)
    if offload.info.chunk_count < 3:
        raise AssertionError(f"only {offload.info.chunk_count} parts: no slot is used twice")
    tensors = offload.plan.tensors
    reference = Plan(preset, tensors, variant="reference")
    state = reference.zeros()
    for step in range(1, STEPS + 1):
        offload.run()
        reference.step(params, grads, state, step=step)
    torch.cuda.synchronize()
    for i, (found, expected) in enumerate(zip(offload.params, params)):
        require_same(f"parameter {i}", found, expected)
    for i, (buffer, expected) in enumerate(zip(offload.state, state)):
        if ctypes.string_at(buffer.data, buffer.bytes) != expected.tobytes():
            raise AssertionError(f"state buffer {i} differs from the reference")
    return f"{sum(numels)} elements in {offload.info.chunk_count} parts, {STEPS} steps"
