"""Steps in CUDA graphs: captured once, replayed with what device memory says by then."""

import itertools
import math

import numpy as np
from lowbit import Tensor

import inputs
from calls import HYPER, Calls
from device import DEVICE, ENVIRONMENT, DevicePlan, require_same, to_device, torch

SHAPES = ((512, 512), (4097,), (100,))
NUMELS = tuple(math.prod(shape) for shape in SHAPES)
DTYPES = ("f32", "bf16")
REPLAYS = 8


def run(report):
    report.environment.update(ENVIRONMENT)
    random = inputs.Random(report.seed)
    report.check("hyper-parameters in device memory, no graph", uncaptured, random)
    for preset, p, g in itertools.product(("adamw32", "adamw4-block", "adamw4"), DTYPES, DTYPES):
        name = f"{preset}: parameters {p}, gradients {g}"
        report.check(f"capture and replay, {name}", captured, random, preset, p, g, False)
    report.check(
        "capture and replay, as update", captured, random, "adamw4-block", "bf16", "f32", True
    )
    report.check("the graph counts its own steps", self_counting, random)
    specs = ("adamw4-block", "adamw4", "factor4", "sm3")
    for spec, name in itertools.product(specs, Calls.names):
        report.check(f"capture and replay, {spec}: {name}", every_call, random, spec, name)


class Training:
    """Tensors whose gradients, hyper-parameters and step number are read from fixed places."""

    def __init__(self, random, preset, param_dtype, grad_dtype, as_update=False):
        self.random = random
        self.grad_dtype = grad_dtype
        self.plan = DevicePlan(
            preset, [Tensor(f"t{i}", s, param_dtype, grad_dtype) for i, s in enumerate(SHAPES)]
        )
        self.params = [random.param(numel, param_dtype) for numel in NUMELS]
        self.updates = [np.zeros_like(array) for array in self.params] if as_update else None
        self.state = self.plan.reference.zeros()
        self.device_params = [to_device(array) for array in self.params]
        self.device_grads = [to_device(random.grad(numel, grad_dtype)) for numel in NUMELS]
        self.device_updates = [to_device(array) for array in self.updates] if as_update else None
        self.device_state = self.plan.state()
        self.hyper = torch.zeros(len(HYPER), dtype=torch.float32, device=DEVICE)
        self.step_number = torch.zeros(1, dtype=torch.int32, device=DEVICE)

    def launch(self):
        """Enqueues a step that reads device memory when it runs."""
        self.plan.step(
            *(self.device_params, self.device_grads, self.device_state),
            updates=self.device_updates,
            hyper=self.hyper,
            step_number=self.step_number,
        )

    def feed(self, step, skip=0.0):
        """Puts new numbers into the fixed places, and steps the reference with them."""
        grads = [self.random.grad(numel, self.grad_dtype) for numel in NUMELS]
        for tensor, array in zip(self.device_grads, grads):
            tensor.copy_(to_device(array))
        values = {**self.random.hyper(), "skip": skip}
        self.hyper.copy_(torch.tensor([values[name] for name in HYPER]))
        self.step_number.fill_(step)
        self.plan.reference.step(
            self.params, grads, self.state, step=step, updates=self.updates, **values
        )

    def require_same(self):
        """Compares all that a step writes. Returns the bytes."""
        torch.cuda.synchronize()
        tensors = self.device_params + self.device_state.buffers + (self.device_updates or [])
        arrays = self.params + self.state + (self.updates or [])
        return sum(map(require_same, itertools.repeat("result"), tensors, arrays))


def uncaptured(random):
    training = Training(random, "adamw4-block", "bf16", "bf16")
    for step in (1, 2, 3, 1000, 2**31 - 1):
        training.feed(step)
        training.launch()
        compared = training.require_same()
    return f"{compared / 1e6:.1f} MB equal after each of 5 steps"


def captured(random, preset, param_dtype, grad_dtype, as_update):
    """The step that is captured is the first that the plan sees: nothing may be left to do at a
    first launch."""
    training = Training(random, preset, param_dtype, grad_dtype, as_update)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.launch()
    compared = training.require_same()  # capturing has changed nothing
    for step in range(1, REPLAYS + 1):
        training.feed(step, skip=float(step == 4))
        graph.replay()
        compared = training.require_same()
    return f"{compared / 1e6:.1f} MB equal after each of {REPLAYS} replays"


def self_counting(random):
    """As in a captured training step: the graph raises the step number before it is read."""
    training = Training(random, "adamw4-block", "bf16", "bf16")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.step_number.add_(1)
        training.launch()
    for step in range(1, REPLAYS + 1):
        training.feed(step)
        training.step_number.fill_(step - 1)
        graph.replay()
        compared = training.require_same()
    return f"{compared / 1e6:.1f} MB equal after each of {REPLAYS} replays"


def every_call(random, spec, name):
    """Captured as the plan's first, then replayed."""
    calls = Calls(random, spec, SHAPES)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls.enqueue(name)
    compared = calls.require_same()  # capturing has changed nothing
    for _ in range(REPLAYS):
        graph.replay()
        calls.expect(name)
        compared = calls.require_same()
    return f"{compared / 1e6:.1f} MB equal after each of {REPLAYS} replays"
