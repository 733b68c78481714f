"""Whether LLaMA-7B in f32, parameters, gradients and AdamW's states, fits 80 GiB (Li et al., 2023, table 5): with
states of 32 bits it does not, with those of 4 a step is made. 62 GiB of device memory.
"""

import math

import model
from device import ENVIRONMENT, DevicePlan, require_same, to_host, torch
from lowbit import Plan, Tensor
from timing import enough_memory, numbers

LIMIT_BYTES = 80 << 30
NEEDED_BYTES = 62 << 30
#: What fits, by count, and what does not: 56.7, 53.6 and 100.4 GiB.
FITS, TOO_LARGE = ("adamw4", "factor4"), "adamw32"
STEPS = 3


def run(report):
    report.environment.update(ENVIRONMENT)
    if not report.check("enough free device memory", enough_memory, NEEDED_BYTES):
        return
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT_BYTES / total))
    report.check(f"{TOO_LARGE}: out of memory", out_of_memory, TOO_LARGE)
    for preset in FITS:
        report.check(f"{preset}: steps", steps, report, preset)


class Training:
    """All that is in memory."""

    def __init__(self, preset):
        shapes = model.shapes()
        self.tensors = [Tensor(f"t{i}", shape, "f32") for i, shape in enumerate(shapes)]
        self.plan = DevicePlan(preset, self.tensors)
        self.counted = self.plan.reference.state_bytes
        self.params, self.grads = (
            [numbers("f32", scale, math.prod(shape)) for shape in shapes]
            for scale in (2**-5, 2**-8)
        )
        before = torch.cuda.memory_allocated()
        self.state = self.plan.state()
        # Without what lies beside the states.
        beside = self.plan.sizes.scratch_bytes + self.state.skipped.numel() * 8
        self.state_bytes = torch.cuda.memory_allocated() - before - beside


def out_of_memory(preset):
    try:
        Training(preset)
    except torch.cuda.OutOfMemoryError:
        return f"as it shall be: {LIMIT_BYTES >> 30} GiB are too few"
    raise AssertionError(f"{preset} was to need more than {LIMIT_BYTES >> 30} GiB")


def steps(report, preset):
    torch.cuda.reset_peak_memory_stats()
    training = Training(preset)
    counted, measured = training.counted, training.state_bytes
    if not counted <= measured <= 1.001 * counted:
        raise AssertionError(f"the states take {measured} bytes, by count {counted}")
    # Of the tensors that keep f32 states the last, whose step needs no other's.
    last = max(i for i, tensor in enumerate(training.tensors) if len(tensor.shape) == 1)
    param, grad = (to_host(of[last]).copy() for of in (training.params, training.grads))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for step in range(1, STEPS + 1):
        begin.record()
        training.plan.step(training.params, training.grads, training.state, step=step)
        end.record()
    torch.cuda.synchronize()
    alone = Plan(preset, [training.tensors[last]], variant="reference")
    state = alone.zeros()
    for step in range(1, STEPS + 1):
        alone.step([param], [grad], state, step=step)
    require_same("the last vector", training.params[last].view(torch.uint8), param)
    report.measure(
        f"{preset}, LLaMA-7B in f32",
        milliseconds=begin.elapsed_time(end),
        peak_gb=torch.cuda.max_memory_allocated() / 1e9,
    )
    return f"states of {measured} bytes, {measured / counted - 1:.3%} more than by count"
