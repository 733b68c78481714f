"""Offload: steps of a model of 1.1 x 10^9 parameters whose states are in pinned host memory, in 4 bits
and in f32 with f32 master weights, stepped on the host and on the device, in one run. 18 GiB of
host memory and 6 GiB of device memory.

A step is timed by the host's clock from an idle device to an idle device, since those on the host
return when they are done. Beside each is the time in which its bytes would cross the bus alone, at the
rates of copies from and to pinned memory, both directions at once. What f32 states take stands for
DeepSpeed's CPU optimizer by the bytes that it moves; its own code is not run here.
"""

import math
import statistics
import time

from device import DEVICE, ENVIRONMENT, torch
from offload import STATES, Offload, place
from timing import enough_memory, numbers

#: TinyLlama-1.1B.
LAYERS, WIDTH, HEADS, HIDDEN, VOCABULARY = 22, 2048, 256, 5632, 32000
NEEDED_BYTES = 6 << 30
COPY_BYTES = 1 << 28
WARM_UP, ROUNDS = 1, 5


def shapes():
    layer = [(WIDTH, WIDTH)] * 2 + [(HEADS, WIDTH)] * 2 + [(HIDDEN, WIDTH)] * 2
    layer += [(WIDTH, HIDDEN)] + [(WIDTH,)] * 2
    return [(VOCABULARY, WIDTH), *layer * LAYERS, (WIDTH,), (VOCABULARY, WIDTH)]


def run(report):
    report.environment.update(ENVIRONMENT)
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
