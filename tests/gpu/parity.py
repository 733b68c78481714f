"""The CUDA kernels against the CPU reference, bit for bit: all that a step writes."""

import ctypes
import functools
import hashlib
import itertools
import json
import math
import os
import pathlib
import tempfile

import numpy as np
from lowbit import Plan, Spec, Tensor, _c_api
from lowbit._library import call, create

import inputs
from calls import Calls, host_buffers
from device import (
    DEVICE,
    ENVIRONMENT,
    DevicePlan,
    buffers,
    require_same,
    to_device,
    to_host,
    torch,
)
from report import ROOT

#: Around the sizes of a block, of the threshold for 4 bits and of a vector access.
SHAPES = (
    (0,),
    (),
    (1,),
    (127,),
    (128,),
    (129,),
    (4096,),
    (4097,),
    (33, 257),
    (64, 3, 3, 3),
    (2, 3, 5, 7, 11),
    # Several tasks of rank-1 scales along both axes; one has 32 rows and 1024 columns.
    (66, 1300),
    (160, 1021),
    (3, 35, 640),
)
#: Of one more tensor, for some dtypes.
LARGE = (1031, 1021)
STEPS = 3
#: As after a long training.
LATE = 1_000_003
DTYPES = ("f32", "bf16", "f16")
#: weights of a tensor -> parameter dtype
WEIGHTS = {"stochastic": "bf16", "master": "f16", "remainder16": "bf16", "correction8": "bf16"}
POLICIES = ("default", "skip_block", "skip_tensor", "skip_step", "propagate")
#: Each with a CUDA context of its own.
PROCESSES = min(16, len(os.sched_getaffinity(0)))
SECONDS = 120


def coded(preset="adamw4-block", **changes):
    """A preset with codes also for the small tensors, whose blocks are short."""
    return {**json.loads(Spec(preset).json), "threshold": 0, **changes}


def factored(axes):
    """factor4 with other rows and columns."""
    v = json.loads(Spec("factor4").json)["v"]
    return coded("factor4", v={**v, "factor_axes": axes})


#: Parts of tensors three times as long along their first axis.
SHARDS = ((40, 257), (4096,), (70, 1400), (6, 5, 256))
#: From and to, of the specs in `run`.
CONVERSIONS = (
    ("adamw4, threshold 0", "adamw8, threshold 0"),
    ("adamw8, threshold 0", "factor4, threshold 0"),
    ("factor4, threshold 0", "adamw4-block, threshold 0"),
    ("adamw4, threshold 0", "lion4, threshold 0"),
    ("sgdm4, threshold 0", "stochastic"),
)

STOCHASTIC_M = {
    "bits": 4, "normalization": "block", "block": 64, "mapping": "nf4", "rounding": "stochastic"
}


def run(report):
    report.environment.update(ENVIRONMENT)
    specs = {
        "adamw32": "adamw32",
        "adamw4-block": "adamw4-block",
        "adamw4-block, threshold 0": coded(),
        "adamw4, threshold 0": coded("adamw4"),
        "adamw4-robust, threshold 0": coded("adamw4-robust"),
        "adamw8, threshold 0": coded("adamw8"),
        "adam with amsgrad": coded("adamw4", optimizer="adam", amsgrad=True),
        "sgdm4, threshold 0": coded("sgdm4"),
        "lion4, threshold 0": coded("lion4"),
        "sm3": "sm3",
        "adafactor with momentum": coded("adafactor", m=json.loads(Spec("adamw4").json)["m"]),
        "factor4, threshold 0": coded("factor4"),
        "factor4, largest two axes": factored("largest_two"),
        "stochastic": coded(
            m=STOCHASTIC_M, v={**STOCHASTIC_M, "mapping": "geometric", "rounding": "stochastic-log"}
        ),
    }
    # The longest first.
    checks = [("more than 2^31 elements", beyond_32_bits)]

    def add(name, function, *arguments):
        checks.append((name, with_random, report.seed, name, function, *arguments))

    for (name, spec), param_dtype, grad_dtype in itertools.product(specs.items(), DTYPES, DTYPES):
        add(
            f"{name}: parameters {param_dtype}, gradients {grad_dtype}",
            *(all_modes, spec, param_dtype, grad_dtype),
        )
    for (name, spec), dtype in itertools.product(specs.items(), ("f32", "bf16")):
        add(f"{name}: a tensor of {LARGE}, {dtype}", large, spec, dtype)
    for (name, spec), entry in itertools.product(specs.items(), Calls.names):
        add(f"{name}: {entry}", every_call, spec, entry)
    for weights, param_dtype in WEIGHTS.items():
        for name in ("adamw4", "adamw4-robust", "adamw4-block", "factor4"):
            add(f"{name}: weights {weights}", weight_form, name, param_dtype, weights)
    for param_dtype, grad_dtype in itertools.product(DTYPES, DTYPES):
        add(
            f"misaligned: parameters {param_dtype}, gradients {grad_dtype}",
            *(misaligned, param_dtype, grad_dtype),
        )
    for name in ("adamw4-block", "adamw4", "factor4", "sm3", "adafactor"):
        add(f"{name}: stats, then apply", stats_then_apply, name)
    for name in ("factor4, threshold 0", "factor4, largest two axes"):
        add(f"{name}: values into factors", values_into_factors, specs[name])
    for name, spec in specs.items():
        add(f"{name}: shards that are moved", moved_shards, spec)
        if name != "adamw32":
            add(f"{name}: a report on its codes", report_on_codes, spec)
    for old, new in CONVERSIONS:
        add(f"{old}, converted to {new}", converted, specs[old], specs[new])
    add("checkpoint written from and read into device memory", checkpoint)
    for line in lines_of("cases.txt"):
        checks.append((f"conformance: {line.split(' ')[0]}", conformance, line))
    report.check_all(checks, PROCESSES, SECONDS)


def with_random(seed, name, function, *arguments):
    """A check with numbers of its own, which are the same whichever others run."""
    return function(inputs.Random(seed, name), *arguments)


# ---- a model in both memories --------------------------------------------------------------------


class Model:
    """Tensors of all SHAPES with their states, on the host and on the device.

    more: other shapes.
    """

    def __init__(self, random, spec, param_dtype, grad_dtype, shift=0, weights="plain", more=()):
        self.random = random
        shapes = (*SHAPES, *more)
        self.grad_dtype = grad_dtype
        self.plan = DevicePlan(
            spec,
            [Tensor(f"t{i}", s, param_dtype, grad_dtype, weights) for i, s in enumerate(shapes)],
        )
        # In elements, so that a pointer stays aligned for its dtype.
        self.upload = functools.partial(to_device, shift=shift * inputs.SIZES[param_dtype])
        self.upload_grad = functools.partial(to_device, shift=shift * inputs.SIZES[grad_dtype])
        self.numels = [math.prod(shape) for shape in shapes]
        self.params = [random.param(numel, param_dtype) for numel in self.numels]
        self.state = self.plan.reference.zeros()
        self.skipped = np.zeros(2, np.int64)
        self.device_params = [self.upload(array) for array in self.params]
        self.device_state = self.plan.state()

    def step(self, step, mode="in place", policy="default", launch=None, **values):
        """One step on both sides, then compares all they wrote. Returns the bytes compared.

        mode: where the update goes. launch: what enqueues the step, given its arguments.
        """
        # With more of them no step at all would be done by that policy.
        bad = policy != "default" and (policy != "skip_step" or step == 2)
        make = self.random.bad_grad if bad else self.random.grad
        grads = [make(numel, self.grad_dtype) for numel in self.numels]
        device_grads = [self.upload_grad(array) for array in grads]
        updates = device_updates = None
        if mode == "as update":
            # What is not written would be seen.
            updates = [np.full_like(array, 7) for array in self.params]
            device_updates = [self.upload(array) for array in updates]
        elif mode == "over the gradient":
            updates, device_updates = grads, device_grads
        self.skipped += self.plan.reference.step(
            self.params, grads, self.state, step=step, updates=updates, nonfinite=policy, **values
        )
        arguments = self.plan.arguments(
            *(self.device_params, device_grads, self.device_state),
            step=step,
            updates=device_updates,
            nonfinite=policy,
            **values,
        )
        (launch or self.plan.launch)(arguments)
        # The gradients themselves too: nothing else may be written.
        pairs = [("gradient", device_grads, grads), *self.results()]
        if mode == "as update":
            pairs.append(("update", device_updates, updates))
        return sum(
            require_same(f"step {step}: {what} {i}", tensor, array)
            for what, tensors, arrays in pairs
            for i, (tensor, array) in enumerate(zip(tensors, arrays))
        )

    def reaches_across_blocks(self):
        """Whether a state has scales that do, so that no single block can be skipped."""
        parts = {info.part for info in self.plan.reference.buffers}
        return not parts <= {"value", "codes", "scales", "master", "remainder", "correction"}

    def results(self):
        """What lasts from step to step: names, tensors, arrays."""
        return [
            ("parameter", self.device_params, self.params),
            ("state buffer", self.device_state.buffers, self.state),
            ("counters", [self.device_state.skipped.view(torch.uint8)], [self.skipped]),
        ]


# ---- checks --------------------------------------------------------------------------------------


def all_modes(random, spec, param_dtype, grad_dtype):
    modes = ["in place", "as update"]
    if param_dtype == grad_dtype:
        modes.append("over the gradient")
    runs, compared, skipped = 0, 0, 0
    for mode, policy in itertools.product(modes, POLICIES):
        model = Model(random, spec, param_dtype, grad_dtype)
        if policy == "skip_block" and model.reaches_across_blocks():
            continue
        try:
            for step in (*range(1, STEPS + 1), LATE):
                # One step is skipped whole.
                skip = float(step == STEPS)
                compared += model.step(step, mode, policy, skip=skip, **random.hyper())
        except AssertionError as error:
            raise AssertionError(f"{mode}, {policy}: {error}") from None
        runs += 1
        if policy == "skip_block" and not model.skipped[0]:
            raise AssertionError("no block was skipped: the gradients do not test that")
        skipped += int(model.skipped[0])
    return (
        f"{runs} runs of {STEPS + 1} steps, {len(SHAPES)} tensors a call;"
        f" {compared / 1e6:.0f} MB equal, {skipped} blocks skipped"
    )


def large(random, spec, dtype):
    model = Model(random, spec, dtype, dtype, more=(LARGE,))
    compared = sum(model.step(step, **random.hyper()) for step in (*range(1, STEPS + 1), LATE))
    return f"{compared / 1e6:.0f} MB equal"


def weight_form(random, preset, param_dtype, weights):
    model = Model(random, coded(preset), param_dtype, "bf16", weights=weights)
    compared = sum(model.step(step, **random.hyper()) for step in range(1, STEPS + 1))
    return f"{compared / 1e6:.0f} MB equal"


def misaligned(random, param_dtype, grad_dtype):
    """Parameters and gradients that begin one element behind an aligned address."""
    model = Model(random, coded(), param_dtype, grad_dtype, shift=1)
    compared = sum(model.step(step, **random.hyper()) for step in range(1, STEPS + 1))
    return f"{compared / 1e6:.0f} MB equal"


CASE_SHAPES = inputs.SHAPES


def lines_of(name):
    return (ROOT / "tests/common" / name).read_text(encoding="utf-8").splitlines()


class Case:
    """A line of cases.txt."""

    def __init__(self, line):
        self.name, self.param, self.grad, weights, steps, spec = line.split(" ")
        self.steps = int(steps)
        tensors = [
            Tensor(f"t{i}", shape, self.param, self.grad, weights)
            for i, shape in enumerate(CASE_SHAPES)
        ]
        self.plan = DevicePlan(json.loads(spec), tensors)


def conformance(line):
    """The hash that all languages compute, on the GPU."""
    case = Case(line)
    numels = [math.prod(shape) for shape in CASE_SHAPES]
    params = [to_device(inputs.param(i, numel, case.param)) for i, numel in enumerate(numels)]
    state = case.plan.state()
    for step in range(1, case.steps + 1):
        grads = [
            to_device(inputs.grad(1000 * step + i, numel, case.grad))
            for i, numel in enumerate(numels)
        ]
        case.plan.step(params, grads, state, step=step, lr=2**-10)
    digest = hashlib.sha256()
    for tensor in params + state.buffers:
        digest.update(to_host(tensor).tobytes())
    line = f"{case.name} {digest.hexdigest()}"
    if line not in lines_of("conformance.txt"):
        raise AssertionError(f"not in tests/common/conformance.txt: {line}")
    return digest.hexdigest()[:16]


def stats_then_apply(random, preset):
    model = Model(random, coded(preset), "bf16", "bf16")

    def launch(arguments):
        for stage in range(model.plan.sizes.stage_count):
            model.plan.launch(arguments, entry=("lowbit_step_stats", stage))
        model.plan.launch(arguments, entry=("lowbit_step_apply",))

    compared = sum(model.step(step, launch=launch) for step in range(1, STEPS + 1))
    return f"{compared / 1e6:.0f} MB equal"


def every_call(random, spec, name):
    """Steps that count, the norm, states to values and back, averages: after steps that filled the
    states."""
    calls = Calls(random, spec, SHAPES)
    for entry in ("counted_step", "counted_step", "compress", name, name):
        calls.enqueue(entry)
        calls.expect(entry)
        compared = calls.require_same()
    return f"{compared / 1e6:.1f} MB equal"


def values_into_factors(random, spec):
    """Compression and averages into a state of factors: exact sums, by other kernels than a step's."""
    calls = Calls(random, spec, SHAPES)
    for entry in ("compress", "average_into_state"):
        calls.enqueue(entry, state_name="v")
        calls.expect(entry, state_name="v")
        compared = calls.require_same()
    return f"{compared / 1e6:.1f} MB equal"


def moved_shards(random, spec):
    """Steps that move shards to the end of their tensors, against a plan that has them there."""

    def shards(third):
        return [
            Tensor(
                *(f"t{i}", shape, "bf16", "f32", "stochastic"),
                global_shape=(3 * shape[0], *shape[1:]),
                offset=(third * shape[0], *(0 for _ in shape[1:])),
            )
            for i, shape in enumerate(SHARDS)
        ]

    plan, there = DevicePlan(spec, shards(0)), Plan(spec, shards(2), variant="reference")
    numels = [math.prod(shape) for shape in SHARDS]
    params, state = [random.param(numel, "bf16") for numel in numels], there.zeros()
    device_params, device_state = [to_device(array) for array in params], plan.state()
    offsets = [(ctypes.c_int64 * len(tensor.shape))(*tensor.offset) for tensor in there.tensors]
    pointers = (ctypes.POINTER(ctypes.c_int64) * len(offsets))(*offsets)
    for step in range(1, STEPS + 1):
        grads = [random.grad(numel, "f32") for numel in numels]
        device_grads = [to_device(array) for array in grads]
        there.step(params, grads, state, step=step)
        arguments = plan.arguments(
            *(device_params, device_grads, device_state), step=step, offsets=pointers
        )
        plan.launch(arguments)
        compared = sum(
            require_same(f"step {step}: {what} {i}", tensor, array)
            for what, tensors, arrays in (
                ("parameter", device_params, params),
                ("state buffer", device_state.buffers, state),
            )
            for i, (tensor, array) in enumerate(zip(tensors, arrays))
        )
    return f"{compared / 1e6:.1f} MB equal after {STEPS} steps"


class CodeReport:
    """What lowbit_report_create measures, as JSON."""

    def __init__(self, plan, arguments):
        self.handle = create(
            self, "report", "lowbit_report_create", plan.handle, ctypes.byref(arguments)
        )
        text = ctypes.create_string_buffer(1 << 20)
        json_format = _c_api.LOWBIT_REPORT_JSON
        call("lowbit_report_text", self.handle, json_format, text, len(text), None)
        self.text = text.value.decode()


def report_on_codes(random, spec):
    """Of a model in device memory, against that of the same in the host's."""
    calls = Calls(random, spec, SHAPES)
    for _ in range(2):
        calls.enqueue("counted_step")
        calls.expect("counted_step")
    # What is read is still being computed.
    found = CodeReport(calls.plan, calls.arguments()).text
    reference, number = calls.plan.reference, np.array([calls.step_number], np.int32)
    scratch = reference.scratch()
    arguments = _c_api.lowbit_step_args_t.init(
        tensor_count=len(calls.params),
        params=host_buffers(calls.params),
        grads=host_buffers(calls.grads),
        buffer_count=len(calls.state),
        state=host_buffers(calls.state),
        scratch=host_buffers([scratch])[0],
        hyper=calls.hyper.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        step_number=number.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
    )
    expected = CodeReport(reference, arguments).text
    if found != expected:
        raise AssertionError(f"{found}, not {expected}")
    calls.require_same()
    states = len(json.loads(found)["states"])
    if not states:
        raise AssertionError("no state has codes")
    return f"{states} states, equal"


def converted(random, old, new):
    """The states of one plan made those of another, in device memory."""
    calls = Calls(random, old, SHAPES)
    calls.enqueue("counted_step")
    calls.expect("counted_step")
    target = DevicePlan(new, calls.plan.tensors)
    state, device_state = target.reference.zeros(), target.state()
    for tensor in device_state.buffers:
        tensor.fill_(255)
    for plans, make, before, after in (
        ((calls.plan.reference, target.reference), host_buffers, calls.state, state),
        ((calls.plan, target), buffers, calls.device_state.buffers, device_state.buffers),
    ):
        first, second = (
            (plan.handle, make(memory), len(memory))
            for plan, memory in zip(plans, (before, after))
        )
        call("lowbit_convert", *first, *second)
    compared = calls.require_same() + sum(
        require_same(f"state buffer {i}", tensor, array)
        for i, (tensor, array) in enumerate(zip(device_state.buffers, state))
    )
    return f"{compared / 1e6:.1f} MB equal"


def checkpoint(random):
    model = Model(random, coded(), "bf16", "bf16")
    for step in range(1, STEPS + 1):
        model.step(step)
    plan, state = model.plan, buffers(model.device_state.buffers)
    stream = torch.cuda.current_stream().cuda_stream
    with tempfile.TemporaryDirectory() as folder:
        expected, found = (pathlib.Path(folder) / name for name in ("host", "device"))
        plan.reference.save(expected, model.state, STEPS)
        path = str(found).encode()
        call("lowbit_checkpoint_save", plan.handle, state, len(state), STEPS, path, stream)
        if found.read_bytes() != expected.read_bytes():
            raise AssertionError("the checkpoint from the device differs from the host's")
        for tensor in model.device_state.buffers:
            tensor.fill_(255)
        path = str(expected).encode()
        call("lowbit_checkpoint_load", plan.handle, path, state, len(state), stream, None)
        for tensor, array in zip(model.device_state.buffers, model.state):
            require_same("state buffer", tensor, array)
        model.step(STEPS + 1)
        return f"{expected.stat().st_size} bytes"


def beyond_32_bits():
    """A tensor of 2^31 + 129 elements, against its two parts stepped apart (the reference would
    take minutes): equal, as the cut is at a block boundary."""
    cut, numel = 2**30, 2**31 + 129
    generator = torch.Generator(DEVICE).manual_seed(1)

    def numbers(scale):
        tensor = torch.empty(numel, dtype=torch.bfloat16, device=DEVICE)
        for part in tensor.split(2**28):
            part.normal_(generator=generator).mul_(scale)
        return tensor

    def plan(count):
        return DevicePlan("adamw4-block", [Tensor("t", (count,), "bf16", "bf16")])

    def step(params, grads):
        state = plans[params.numel()].state()
        for step in (1, 2):
            plans[params.numel()].step([params], [grads], state, step=step)
        return state.buffers

    plans = {count: plan(count) for count in (numel, cut, numel - cut)}
    params, grads = numbers(2**-5), numbers(2**-8)
    parts = [params[:cut].clone(), params[cut:].clone()]
    whole = step(params, grads)
    parted = [step(part, grads[at:][: part.numel()]) for part, at in zip(parts, (0, cut))]
    for name, found, first, second in [("parameter", params, *parts), *zip(NAMES, whole, *parted)]:
        at = first.numel()
        if not (torch.equal(found[:at], first) and torch.equal(found[at:], second)):
            raise AssertionError(f"{name} differs from that of the parts")
    return f"{numel} elements equal their parts of {cut} and {numel - cut}"


NAMES = ("m codes", "m scales", "v codes", "v scales")
