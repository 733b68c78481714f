"""The tensors of LLaMA-7B, bf16, beside one tensor of 10^9 elements: block-wise and rank-1 states.
55 GiB of device memory. What is measured is explained in timing.py."""

import math

import timing
from device import ENVIRONMENT
from timing import Copy, Step, enough_memory, measure, numbers

LAYERS = 32
WIDTH, HIDDEN, VOCABULARY = 4096, 11008, 32000
NEEDED_BYTES = 55 << 30


def shapes():
    """Of the 291 tensors, in their order."""
    layer = [(WIDTH, WIDTH)] * 4 + [(HIDDEN, WIDTH)] * 2 + [(WIDTH, HIDDEN)] + [(WIDTH,)] * 2
    embedding = (VOCABULARY, WIDTH)
    return [embedding, *layer * LAYERS, (WIDTH,), embedding]


def run(report):
    report.environment.update(ENVIRONMENT)
    if not report.check("enough free device memory", enough_memory, NEEDED_BYTES):
        return
    of_model = shapes()
    count = len(of_model)
    model = [
        [numbers("bf16", scale, math.prod(shape)) for shape in of_model]
        for scale in (2**-5, 2**-8)
    ]
    one, block, rank1 = (
        Step("adamw4-block", "bf16", "bf16", [(timing.NUMEL,)], name="block, one tensor"),
        Step("adamw4-block", "bf16", "bf16", of_model, model, f"block, {count} tensors"),
        Step("adamw4", "bf16", "bf16", of_model, model, f"rank-1, {count} tensors"),
    )
    times = measure(report, [Copy(), one, block, rank1])
    rates = [step.bytes / times[step.name] for step in (one, block)]
    report.measure(f"{count} tensors to one, bytes a second", ratio=rates[1] / rates[0])
    report.measure("rank-1 to block, time", ratio=times[rank1.name] / times[block.name])
    report.check("one tensor: what was timed is right", one.verify)
