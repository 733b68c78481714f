"""How long steps take on 10^9 parameters beside a copy, in one run. 66 GiB of device memory.

Every round runs each candidate once, so that clocks and temperature are the same for all; CUDA
events time them, and the medians of the rounds are compared. All working sets are far larger than
the L2 cache. Two floors are beside each time: the time in which its bytes would move at the copy's
rate, and the time in which the device would issue its instructions, as counted in the machine code
(`cuda/instructions.json`).
"""

import ctypes
import json
import math
import statistics
import time

from lowbit import Plan, Tensor

import inputs
from device import (
    DEVICE,
    ENVIRONMENT,
    Context,
    DevicePlan,
    require_same,
    to_device,
    to_host,
    torch,
)
from report import ROOT

NUMEL = 10**9
#: The same number of elements as a matrix, for states that have rows and columns.
MATRIX = (31250, 32000)
COPY_BYTES = 4 << 30
WARM_UP, ROUNDS = 3, 21
#: Elements at the tensor's end that are compared with the reference, whole blocks of them.
TAIL = 1 << 16
NEEDED_BYTES = 66 << 30

#: Preset, dtype of the parameter, dtype of the gradient.
STEPS = (
    ("adamw4-block", "bf16", "bf16"),
    ("adamw4-block", "bf16", "f32"),
    ("adamw4-block", "f32", "f32"),
    ("adamw4", "bf16", "bf16"),
    ("adamw4", "f32", "f32"),
    ("adamw32", "bf16", "bf16"),
    ("adamw32", "f32", "f32"),
)
#: Beside another copy: of other tables and other optimizers. Of factor4 the floors are those of the kernel that
#: steps; its squares are collected and summed before, by kernels that are not counted in instructions.
OTHER_STEPS = (
    ("adamw4-robust", "bf16", "bf16"),
    ("sgdm4", "bf16", "bf16"),
    ("lion4", "bf16", "bf16"),
    ("adamw8", "bf16", "bf16"),
    ("sgdm8", "bf16", "bf16"),
    ("lion8", "bf16", "bf16"),
    ("factor4", "bf16", "bf16"),
)
#: Those whose scales are of rows and columns.
OF_MATRICES = ("adamw4", "adamw4-robust", "factor4")
TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
#: Optimizer and states in the names of a preset's kernels, where there is one for each pair of dtypes.
KERNELS = {
    "adamw4-block": ("adamw", "block4"),
    "adamw4": ("adamw", "rank1"),
    "adamw4-robust": ("adamw", "robust"),
    "adamw32": ("adamw", "f32"),
    "adamw8": ("adamw", "block8"),
    "sgdm8": ("sgdm", "block8"),
    "sgdm4": ("sgdm", "block4"),
    "lion8": ("lion", "block8"),
    "lion4": ("lion", "block4"),
    "factor4": ("adamw", "factor4"),
}


def run(report):
    report.environment.update(ENVIRONMENT)
    if not report.check("enough free device memory", enough_memory, NEEDED_BYTES):
        return
    # Before all else, as the first one loads the kernels.
    report.measure("lowbit_context_create_cuda", **context_creation())
    candidates = [Copy()] + [Step(*step) for step in STEPS]
    measure(report, candidates)
    for candidate in candidates[1:]:
        if candidate.preset not in OF_MATRICES:
            report.check(f"{candidate.name}: what was timed is right", candidate.verify)
    del candidates, candidate
    others = [Copy()] + [Step(*step) for step in OTHER_STEPS]
    measure(report, others, others[1:])
    for candidate in others[1:]:
        if candidate.preset not in OF_MATRICES:
            report.check(f"{candidate.name}: what was timed is right", candidate.verify)
    del others, candidate
    for count in (1, 300):
        report.measure(f"adamw4-block bf16/f32, {count} x 65536", **host_time(count))


def enough_memory(needed):
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        raise AssertionError(f"{free / 2**30:.1f} GiB are free; {needed >> 30} are needed")
    return f"{free / 2**30:.1f} GiB"


def measure(report, candidates, reported=None):
    """Times candidates, of which the first is a copy, and puts rows into the report: of all, or of those
    in `reported`."""
    times = alternate(candidates)
    copy = candidates[0]
    copy_rate = copy.bytes / statistics.median(times[copy])
    for candidate in candidates if reported is None else reported:
        seconds = statistics.median(times[candidate])
        bytes_ms = 1e3 * candidate.bytes / copy_rate
        issue_ms = issue_floor_ms(candidate)
        report.measure(
            candidate.name,
            milliseconds=1e3 * seconds,
            fastest_ms=1e3 * min(times[candidate]),
            slowest_ms=1e3 * max(times[candidate]),
            rounds=len(times[candidate]),
            ns_per_param=None if candidate is copy else 1e9 * seconds / candidate.numel,
            bytes_per_param=None if candidate is copy else candidate.bytes / candidate.numel,
            gb_per_s=candidate.bytes / seconds / 1e9,
            bytes_ms=bytes_ms,
            issue_ms=issue_ms,
            times_the_floor=1e3 * seconds / max(bytes_ms, issue_ms or 0),
        )
    return {candidate.name: statistics.median(times[candidate]) for candidate in candidates}


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


def issue_floor_ms(candidate):
    """The time in which the device would issue the instructions of a kernel that has been counted
    for its architecture; None for others."""
    counts = json.loads((ROOT / "cuda/instructions.json").read_text(encoding="utf-8"))
    major, minor, multiprocessors, kilohertz = map(device_attribute, (75, 76, 16, 13))
    counted = counts.get(f"sm_{major}{minor}", {}).get(getattr(candidate, "kernel", None))
    if counted is None:
        return None
    # Four schedulers a multiprocessor, each issuing for the 32 elements of a warp's lanes.
    elements_per_ms = kilohertz * multiprocessors * 4 * 32 / counted
    return candidate.numel / elements_per_ms


def device_attribute(number):
    """A CUdevice_attribute of device 0, asked of the driver that the library has loaded."""
    value = ctypes.c_int()
    status = ctypes.CDLL("libcuda.so.1").cuDeviceGetAttribute(
        ctypes.byref(value), ctypes.c_int(number), ctypes.c_int(0)
    )
    if status != 0:
        raise RuntimeError(f"cuDeviceGetAttribute({number}) returned {status}")
    return value.value


# ---- candidates ----------------------------------------------------------------------------------


def numbers(dtype, scale, numel):
    tensor = torch.empty(numel, dtype=TORCH_DTYPES[dtype], device=DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(1)
    return tensor.normal_(generator=generator).mul_(scale)


class Copy:
    """Bytes read and bytes written."""

    name = "copy"

    def __init__(self):
        self.bytes = 2 * COPY_BYTES
        self.source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=DEVICE)
        self.target = torch.empty_like(self.source)

    def run(self):
        self.target.copy_(self.source)


class Step:
    """A lowbit step in place: parameter and states read and written, gradient read.

    model: (params, grads) that others use as well, lists of tensors; shapes: theirs.
    """

    def __init__(self, preset, param_dtype, grad_dtype, shapes=None, model=None, name=None):
        self.preset, self.dtypes = preset, (param_dtype, grad_dtype)
        self.name = name or f"{preset} {param_dtype}/{grad_dtype}"
        if preset in KERNELS:
            optimizer, states = KERNELS[preset]
            self.kernel = f"lowbit_k_{optimizer}_{param_dtype}_{grad_dtype}_{states}"
        shapes = shapes or [MATRIX if preset in OF_MATRICES else (NUMEL,)]
        self.tensors = [Tensor(f"t{i}", shape, *self.dtypes) for i, shape in enumerate(shapes)]
        self.plan = DevicePlan(preset, self.tensors)
        numels = [math.prod(shape) for shape in shapes]
        self.numel = sum(numels)
        self.params, self.grads = model or [
            [numbers(dtype, scale, numel) for numel in numels]
            for dtype, scale in ((param_dtype, 2**-5), (grad_dtype, 2**-8))
        ]
        self.state = self.plan.state()
        self.steps = 0
        self.first_tail = to_host(self.tail(self.params)).copy()
        sizes = 2 * self.params[0].element_size() + self.grads[0].element_size()
        self.bytes = self.numel * sizes + 2 * self.plan.reference.state_bytes

    @staticmethod
    def tail(tensors):
        return tensors[-1][-TAIL:].view(torch.uint8)

    def run(self):
        self.steps += 1
        self.plan.step(self.params, self.grads, self.state, step=self.steps)

    def verify(self):
        """The end of the last tensor after all rounds, against the reference on that part alone:
        where scales are of blocks, it is the same. Random numbers are those of its place."""
        last = self.tensors[-1]
        place = {"global_shape": last.shape, "offset": (math.prod(last.shape) - TAIL,)}
        part = last._replace(shape=(TAIL,), **place)
        plan = Plan(self.preset, [part], variant="reference")
        params, grads, state = self.first_tail, to_host(self.tail(self.grads)), plan.zeros()
        for step in range(1, self.steps + 1):
            plan.step([params], [grads], state, step=step)
        require_same("parameter", self.tail(self.params), params)
        return (
            f"the last {TAIL} of {self.numel} elements equal the reference after {self.steps} steps"
        )


# ---- the host's time -----------------------------------------------------------------------------------


def context_creation(calls=5):
    """Microseconds of the first lowbit_context_create_cuda of this process, which loads the kernels,
    and of the next ones. PyTorch has opened the device before."""
    torch.cuda.synchronize()
    contexts, seconds = [], []
    for _ in range(1 + calls):
        begin = time.perf_counter()
        contexts.append(Context())
        seconds.append(time.perf_counter() - begin)
    return {"first_us": 1e6 * seconds[0], "host_us": 1e6 * statistics.median(seconds[1:])}


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
