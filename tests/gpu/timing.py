"""How long steps take on 10^9 parameters, beside a copy, and PyTorch's fused AdamW, in one run.

Every round runs each candidate once, so that clocks and temperature are the same for all; CUDA
events time them, and the medians of the rounds are compared. The floor of a candidate is the time
in which its bytes would move at the copy's rate. All working sets are far larger than the L2 cache.
"""

import statistics
import time

from lowbit import Plan, Tensor

import inputs
from device import DEVICE, ENVIRONMENT, DevicePlan, require_same, to_device, to_host, torch

NUMEL = 10**9
COPY_BYTES = 4 << 30
WARM_UP, ROUNDS = 3, 21
#: Elements at the tensor's end that are compared with the reference, whole blocks of them.
TAIL = 1 << 16
NEEDED_BYTES = 72 << 30

#: Preset, dtype of the parameter, dtype of the gradient.
STEPS = (
    ("adamw4-block", "bf16", "bf16"),
    ("adamw4-block", "bf16", "f32"),
    ("adamw4-block", "f32", "f32"),
    ("adamw32", "bf16", "bf16"),
    ("adamw32", "f32", "f32"),
)
TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def run(report):
    report.environment.update(ENVIRONMENT)
    if not report.check("enough free device memory", enough_memory):
        return
    candidates = [Copy()] + [Step(*step) for step in STEPS] + [TorchAdamw()]
    times = alternate(candidates)
    copy = candidates[0]
    copy_rate = copy.bytes / statistics.median(times[copy])
    for candidate in candidates:
        seconds = statistics.median(times[candidate])
        report.measure(
            candidate.name,
            milliseconds=1e3 * seconds,
            fastest_ms=1e3 * min(times[candidate]),
            slowest_ms=1e3 * max(times[candidate]),
            rounds=len(times[candidate]),
            ns_per_param=None if candidate is copy else 1e9 * seconds / NUMEL,
            bytes_per_param=None if candidate is copy else candidate.bytes / NUMEL,
            gb_per_s=candidate.bytes / seconds / 1e9,
            times_the_floor=seconds * copy_rate / candidate.bytes,
        )
    for candidate in candidates:
        if isinstance(candidate, Step):
            report.check(f"{candidate.name}: what was timed is right", candidate.verify)
    del candidates, candidate, copy, times
    for count in (1, 300):
        report.measure(f"adamw4-block bf16/f32, {count} x 65536", **host_time(count))


def enough_memory():
    free, _ = torch.cuda.mem_get_info()
    if free < NEEDED_BYTES:
        raise AssertionError(f"{free / 2**30:.1f} GiB are free; {NEEDED_BYTES >> 30} are needed")
    return f"{free / 2**30:.1f} GiB"


def alternate(candidates):
    """Seconds of each round, by candidate."""
    times = {candidate: [] for candidate in candidates}
    for round_ in range(WARM_UP + ROUNDS):
        events = []
        for candidate in candidates:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            candidate.run()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        if round_ >= WARM_UP:
            for candidate, (begin, end) in zip(candidates, events):
                times[candidate].append(begin.elapsed_time(end) / 1e3)
    return times


# ---- candidates ----------------------------------------------------------------------------------


def numbers(dtype, scale):
    tensor = torch.empty(NUMEL, dtype=TORCH_DTYPES[dtype], device=DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(1)
    return tensor.normal_(generator=generator).mul_(scale)


class Copy:
    """Bytes read and bytes written."""

    name = "copy"
    bytes = 2 * COPY_BYTES

    def __init__(self):
        self.source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=DEVICE)
        self.target = torch.empty_like(self.source)

    def run(self):
        self.target.copy_(self.source)


class Step:
    """A lowbit step in place: parameter and states read and written, gradient read."""

    def __init__(self, preset, param_dtype, grad_dtype):
        self.name = f"{preset} {param_dtype}/{grad_dtype}"
        self.preset, self.dtypes = preset, (param_dtype, grad_dtype)
        self.plan = DevicePlan(preset, [Tensor("t", (NUMEL,), param_dtype, grad_dtype)])
        self.params = numbers(param_dtype, 2**-5)
        self.grads = numbers(grad_dtype, 2**-8)
        self.state = self.plan.state()
        self.steps = 0
        self.first_tail = to_host(self.tail(self.params)).copy()
        sizes = 2 * self.params.element_size() + self.grads.element_size()
        self.bytes = NUMEL * sizes + 2 * self.plan.reference.state_bytes

    @staticmethod
    def tail(tensor):
        return tensor[-TAIL:].view(torch.uint8)

    def run(self):
        self.steps += 1
        self.plan.step([self.params], [self.grads], self.state, step=self.steps)

    def verify(self):
        """The end of the tensor after all rounds, against the reference on that part alone."""
        plan = Plan(self.preset, [Tensor("t", (TAIL,), *self.dtypes)], variant="reference")
        params, grads, state = self.first_tail, to_host(self.tail(self.grads)), plan.zeros()
        for step in range(1, self.steps + 1):
            plan.step([params], [grads], state, step=step)
        require_same("parameter", self.tail(self.params), params)
        return f"the last {TAIL} of {NUMEL} elements equal the reference after {self.steps} steps"


class TorchAdamw:
    """torch.optim.AdamW(fused=True); its moments have the parameter's dtype."""

    name = "torch AdamW(fused=True) bf16"
    bytes = NUMEL * 7 * 2

    def __init__(self):
        self.params = torch.nn.Parameter(numbers("bf16", 2**-5))
        self.params.grad = numbers("bf16", 2**-8)
        self.optimizer = torch.optim.AdamW([self.params], fused=True)

    def run(self):
        self.optimizer.step()


# ---- host time -----------------------------------------------------------------------------------


def host_time(count, calls=200):
    """Microseconds of lowbit_step with its arguments made before, until it returns (through
    ctypes, which is about 1 of them) and until the device is done. The queue is empty before."""
    random = inputs.Random(0)
    numel = 1 << 16
    plan = DevicePlan("adamw4-block", [Tensor(f"t{i}", (numel,), "bf16") for i in range(count)])
    params = [to_device(random.param(numel, "bf16")) for _ in range(count)]
    grads = [to_device(random.grad(numel, "f32")) for _ in range(count)]
    state = plan.state()
    returned, done = [], []
    for step in range(1, calls + 1):
        arguments = plan.arguments(params, grads, state, step=step)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        plan.launch(arguments)
        returned.append(time.perf_counter() - begin)
        torch.cuda.synchronize()
        done.append(time.perf_counter() - begin)
    return {
        "host_us": 1e6 * statistics.median(returned),
        "done_us": 1e6 * statistics.median(done),
    }
