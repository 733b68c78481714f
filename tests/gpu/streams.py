"""What a step may do to a host program: order on its stream, and nothing else."""

import ctypes
import threading
import time

from lowbit import Error, Tensor, _c_api
from lowbit._library import create

import inputs
from calls import Calls
from device import DEVICE, ENVIRONMENT, DevicePlan, require_same, to_device, torch

NUMELS = (1 << 20, 4097, 100)
#: How long a stream is kept busy where a step must not wait for it.
BUSY_MS = 500


def run(report):
    report.environment.update(ENVIRONMENT)
    random = inputs.Random(report.seed)
    report.check("ordered on the caller's stream", ordered, random)
    report.check("two streams at once", two_streams, random)
    report.check("two threads with one plan", two_threads, random)
    for name in Calls.names:
        report.check(f"returns before the work runs: {name}", returns_early, random, name)
    report.check("current context: torch's", context_stays, random, current_context)
    report.check("current context: none", context_stays, random, no_context)
    report.check("current context: another", context_stays, random, other_context)
    report.check("devices that do not exist are refused", wrong_device)


class Training:
    """A few tensors with gradients that stay, on the device and on the host."""

    def __init__(self, random, plan=None):
        self.plan = plan or make_plan()
        self.params = [random.param(numel, "bf16") for numel in NUMELS]
        self.grads = [random.grad(numel, "bf16") for numel in NUMELS]
        self.device_params = [to_device(array) for array in self.params]
        self.device_grads = [to_device(array) for array in self.grads]
        self.state = self.plan.state()
        self.steps = 0
        # Set-up is on the default stream, which the other streams of torch do not wait for.
        torch.cuda.synchronize()

    def arguments(self):
        """The arguments of the next step."""
        self.steps += 1
        return self.plan.arguments(
            self.device_params, self.device_grads, self.state, step=self.steps
        )

    def step(self, stream=None):
        self.plan.launch(self.arguments(), stream)

    def require_same(self):
        """Compares with as many steps of the reference, after all work on the device."""
        torch.cuda.synchronize()
        state = self.plan.reference.zeros()
        for step in range(1, self.steps + 1):
            self.plan.reference.step(self.params, self.grads, state, step=step)
        compared = sum(
            require_same("parameter or state", tensor, array)
            for tensor, array in zip(self.device_params + self.state.buffers, self.params + state)
        )
        return f"{self.steps} steps, {compared / 1e6:.1f} MB equal the reference"


def make_plan():
    return DevicePlan(
        "adamw4-block", [Tensor(f"t{i}", (n,), "bf16", "bf16") for i, n in enumerate(NUMELS)]
    )


def busy_cycles():
    """For torch.cuda._sleep: a kernel that runs for about BUSY_MS."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cycles = 50_000_000
    for _ in range(2):
        begin.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
    return int(cycles * BUSY_MS / begin.elapsed_time(end))


# ---- order ---------------------------------------------------------------------------------------


def ordered(random):
    """The gradients arrive on the stream late, behind a kernel that keeps it busy. A step that ran
    anywhere else would see the old ones."""
    training = Training(random)
    late = [tensor.clone() for tensor in training.device_grads]
    for tensor in training.device_grads:
        tensor.zero_()
    cycles = busy_cycles()
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(cycles)
        for tensor, source in zip(training.device_grads, late):
            tensor.copy_(source)
        for _ in range(3):
            training.step(stream)
    return training.require_same()


def two_streams(random):
    trainings = [Training(random), Training(random)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    cycles = busy_cycles()
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(cycles // 10)
    for _ in range(20):
        for training, stream in zip(trainings, streams):
            training.step(stream)
    return "; ".join(training.require_same() for training in trainings)


def two_threads(random):
    plan = make_plan()
    trainings = [Training(random, plan), Training(random, plan)]
    failures = []

    def work(training, stream):
        try:
            for _ in range(50):
                training.step(stream)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(t, torch.cuda.Stream())) for t in trainings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return "; ".join(training.require_same() for training in trainings)


# ---- no synchronisation, no allocation -----------------------------------------------------------


def returns_early(random, name):
    calls = Calls(random)
    cycles = busy_cycles()
    stream = torch.cuda.Stream()
    calls.enqueue(name, stream)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(cycles)
        # Whatever the clock did since the measurement: the stream is known to be busy if this
        # event has not happened when the calls have returned.
        busy = stream.record_event()
    begin = time.perf_counter()
    for _ in range(20):
        calls.enqueue(name, stream)
    elapsed_ms = 1e3 * (time.perf_counter() - begin)
    if busy.query():
        raise AssertionError(f"20 calls took {elapsed_ms:.1f} ms and waited for the stream")
    if elapsed_ms > BUSY_MS / 4:
        raise AssertionError(f"20 calls took {elapsed_ms:.1f} ms on the host")
    for _ in range(21):
        calls.expect(name)
    return (
        f"20 calls enqueued in {elapsed_ms:.2f} ms behind a kernel of {BUSY_MS} ms;"
        f" {calls.require_same() / 1e6:.1f} MB equal the reference"
    )


def wrong_device():
    """A context on an ordinal that there is not is refused, and names it."""
    count = torch.cuda.device_count()
    for device in (count, -1):
        info = _c_api.lowbit_cuda_info_t.init(device=device)
        try:
            create(Refused(), "context", "lowbit_context_create_cuda", ctypes.byref(info))
        except Error as error:
            if error.name != "INVALID_ARGUMENT" or f"device is {device}" not in str(error):
                raise
        else:
            raise AssertionError(f"device {device} was opened; there are {count}")
    return f"{count} and -1, where there are {count}"


class Refused:
    """What a context would have belonged to."""


# ---- the caller's context ------------------------------------------------------------------------


def context_stays(random, surroundings):
    """Steps on a new thread; the context that is current there is current afterwards."""
    training = Training(random)
    stream = torch.cuda.Stream()
    found = []

    def work():
        try:
            with surroundings():
                arguments = training.arguments()
                before = get_current()
                training.plan.launch(arguments, stream)
                found.append((before, get_current()))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (result,) = found
    if isinstance(result, Exception):
        raise result
    before, after = result
    if before != after:
        raise AssertionError(f"the current context was {before}, and is {after}")
    return f"{'none' if before is None else hex(before)}; {training.require_same()}"


def driver(name, *arguments):
    """Calls a function of the driver, to see what the library did to it."""
    status = getattr(ctypes.CDLL("libcuda.so.1"), name)(*arguments)
    if status != 0:
        raise RuntimeError(f"{name} returned {status}")


def get_current():
    context = ctypes.c_void_p()
    driver("cuCtxGetCurrent", ctypes.byref(context))
    return context.value


class current_context:
    """torch's, the device's primary context."""

    def __enter__(self):
        torch.zeros(1, device=DEVICE).cpu()
        if get_current() is None:
            raise AssertionError("torch has no context current")

    def __exit__(self, *_):
        pass


class no_context:
    """A thread on which nothing has used CUDA."""

    def __enter__(self):
        if get_current() is not None:
            raise AssertionError("a new thread has a context current")

    def __exit__(self, *_):
        pass


class other_context:
    """A context that is not the device's primary one."""

    def __enter__(self):
        self.context = ctypes.c_void_p()
        driver("cuCtxCreate_v2", ctypes.byref(self.context), ctypes.c_uint(0), ctypes.c_int(0))
        if get_current() != self.context.value:
            raise AssertionError("a new context is not current")

    def __exit__(self, *_):
        driver("cuCtxDestroy_v2", self.context)
