"""Offload: steps of a model of 1.1 x 10^9 parameters whose states are in pinned host memory, in 4 bits
and in f32 with f32 master weights, stepped on the host and on the device, in one run. 18 GiB of
host memory and 6 GiB of device memory.

A step is timed by the host's clock from an idle device to an idle device, since those on the host
return when they are done. Beside each is the time in which its bytes would cross the bus alone, at the
rates of copies from and to pinned memory, both directions at once. What f32 states take stands for
DeepSpeed's CPU optimizer by the bytes that it moves; its own code is not run here.
"""

import ctypes
import math
import statistics
import time

from lowbit import Plan, Tensor, _c_api
from lowbit._library import call, create

import inputs
from device import (
    DEVICE,
    ENVIRONMENT,
    DevicePlan,
    buffers,
    context,
    require_same,
    to_device,
    to_host,
    torch,
)
from timing import enough_memory, numbers

#: TinyLlama-1.1B.
LAYERS, WIDTH, HEADS, HIDDEN, VOCABULARY = 22, 2048, 256, 5632, 32000
NEEDED_BYTES = 6 << 30
COPY_BYTES = 1 << 30
WARM_UP, ROUNDS = 2, 11
#: Of the tensors that are compared with the reference: whole and broken blocks, below and above the
#: threshold.
SHAPES = ((70, 130), (101,), (64, 129), (0, 5), (9000,), (3, 50, 70))
STEPS = 3

#: Name, preset, weights.
STATES = (
    ("4 bits", "adamw4-block", "stochastic"),
    ("f32", "adamw32", "master"),
)


def shapes():
    layer = [(WIDTH, WIDTH)] * 2 + [(HEADS, WIDTH)] * 2 + [(HIDDEN, WIDTH)] * 2
    layer += [(WIDTH, HIDDEN)] + [(WIDTH,)] * 2
    return [(VOCABULARY, WIDTH), *layer * LAYERS, (WIDTH,), (VOCABULARY, WIDTH)]


def run(report):
    report.environment.update(ENVIRONMENT)
    for name, preset, weights in STATES:
        for on_host in (True, False):
            what = f"{name}, {place(on_host)}"
            report.check(
                *(f"{what}: equals the reference", compare),
                *(report.seed, preset, weights, on_host),
            )
    if not report.check("enough free device memory", enough_memory, NEEDED_BYTES):
        return
    model = [
        [numbers("bf16", scale, math.prod(shape)) for shape in shapes()]
        for scale in (2**-5, 2**-8)
    ]
    rates = [copy_rate(direction) for direction in (0, 1)]
    for direction, rate in zip(("to the device", "to the host"), rates):
        report.measure(f"copy {direction}", gb_per_s=rate / 1e9)
    medians = {}
    for name, preset, weights in STATES:
        for on_host in (True, False):
            # One at a time, as each pins as much memory as its states take.
            step = Offload(preset, weights, on_host, shapes(), model)
            what = f"{name}, {place(on_host)}"
            medians[name, on_host] = measure(report, what, step, rates)
            del step
    for on_host in (True, False):
        ratio = medians["f32", on_host] / medians["4 bits", on_host]
        report.measure(f"f32 to 4 bits, {place(on_host)}, time", ratio=ratio)


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


def measure(report, name, step, rates):
    seconds = []
    for round_ in range(WARM_UP + ROUNDS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        step.run()
        torch.cuda.synchronize()
        if round_ >= WARM_UP:
            seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    moved = (step.info.bytes_to_device, step.info.bytes_to_host)
    bus = max(bytes_ / rate for bytes_, rate in zip(moved, rates))
    report.measure(
        name,
        milliseconds=1e3 * median,
        fastest_ms=1e3 * min(seconds),
        slowest_ms=1e3 * max(seconds),
        rounds=len(seconds),
        ns_per_param=1e9 * median / step.numel,
        bytes_per_param=sum(moved) / step.numel,
        host_bytes_per_param=step.info.host_bytes / step.numel,
        staging_bytes=step.info.staging_bytes,
        bytes_ms=1e3 * bus,
        times_the_floor=median / bus,
    )
    return median


def copy_rate(direction):
    """Bytes a second of a copy between pinned and device memory, while one runs the other way.

    direction: 0: to the device, 1: to the host.
    """
    host = [torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    device = [torch.empty(COPY_BYTES, dtype=torch.uint8, device=DEVICE) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    pairs = [(device[0], host[0]), (host[1], device[1])]
    seconds = []
    for _ in range(WARM_UP + ROUNDS):
        torch.cuda.synchronize()
        spans = []
        for stream, (to, from_) in zip(streams, pairs):
            with torch.cuda.stream(stream):
                events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                events[0].record()
                to.copy_(from_, non_blocking=True)
                events[1].record()
                spans.append(events)
        torch.cuda.synchronize()
        begin, end = spans[direction]
        seconds.append(begin.elapsed_time(end) / 1e3)
    return COPY_BYTES / statistics.median(seconds[WARM_UP:])
