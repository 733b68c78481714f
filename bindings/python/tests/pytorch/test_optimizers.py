"""Steps: against torch's own optimizers, and what the options do."""

import gc
import os
import pathlib
import subprocess
import sys
import unittest
import weakref

import conformance
import support

import protocol
import torch
from torch.profiler import ProfilerActivity, profile

import lowbit
import lowbit.torch as lt

SHAPES = ((300, 257), (64, 3, 3, 3), (5000,), ())


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def fill(params, step=0):
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def run(optimizer, params, steps=3):
    for step in range(steps):
        fill(params, step)
        optimizer.step()


def part(optimizer, index=0):
    """What the plan says of one parameter."""
    return optimizer.batches()[0].plan.report().splitlines()[1 + index]


class TestAgainstTorch(unittest.TestCase):
    def test_conformance(self):
        expected = (support.ROOT / "tests" / "common" / "conformance.txt").read_text()
        pairs = list(zip(protocol.lines(conformance.line), expected.splitlines(), strict=True))
        found = [pair for pair in pairs if not pair[0].endswith(conformance.UNSUPPORTED)]
        self.assertEqual(len(pairs) - len(found), 0 if conformance.MIXED else 3)
        for line, wanted in found:
            self.assertEqual(line, wanted)

    def check(self, ours, torchs, **options):
        spec = {"adamw": "adamw32", "adam": "adamw32", "sgdm": "sgdm32"}[ours._optimizer]
        a, b = parameters(), parameters()
        run(ours(a, spec=spec, **options), a, 6)
        run(torchs(b, **options), b, 6)
        for p, q in zip(a, b):
            torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-6)

    def test_float32_states_give_torchs_steps(self):
        for options in ({}, {"amsgrad": True}, {"maximize": True, "weight_decay": 0.1}):
            with self.subTest(**options):
                self.check(lt.AdamW4bit, torch.optim.AdamW, lr=0.01, **options)
                self.check(lt.Adam4bit, torch.optim.Adam, lr=0.01, **options)
        for options in ({}, {"nesterov": True}, {"dampening": 0.3, "weight_decay": 0.1}):
            with self.subTest(**options):
                self.check(lt.SGD4bit, torch.optim.SGD, lr=0.01, momentum=0.9, **options)

    def test_groups_and_schedulers(self):
        def two_groups(cls, params, **options):
            groups = [
                {"params": params[:2], "lr": 0.1, "weight_decay": 0.0, "betas": (0.8, 0.9)},
                {"params": params[2:], "amsgrad": True},
            ]
            return cls(groups, lr=0.01, **options)

        a, b = parameters(), parameters()
        ours = two_groups(lt.AdamW4bit, a, spec="adamw32")
        theirs = two_groups(torch.optim.AdamW, b)
        schedules = [torch.optim.lr_scheduler.StepLR(opt, 2, 0.5) for opt in (ours, theirs)]
        for step in range(6):
            for params, optimizer, schedule in zip((a, b), (ours, theirs), schedules):
                fill(params, step)
                optimizer.step()
                schedule.step()
        for p, q in zip(a, b):
            torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-6)

    def test_parameters_without_gradients_keep_their_own_count(self):
        a, b = parameters(), parameters()
        ours, theirs = lt.AdamW4bit(a, spec="adamw32"), torch.optim.AdamW(b)
        for step, stepped in enumerate(([0, 1], [0, 1, 2], [2, 3], [0, 3], [0, 1, 2, 3])):
            for params, optimizer in ((a, ours), (b, theirs)):
                optimizer.zero_grad()
                fill([params[i] for i in stepped], step)
                optimizer.step()
        for p, q in zip(a, b):
            torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-6)
            self.assertEqual(ours.state[p]["step"].item(), int(theirs.state[q]["step"]))

    def test_a_closure_is_called_with_gradients_on(self):
        param = torch.nn.Parameter(torch.ones(3))
        optimizer = lt.AdamW4bit([param], lr=0.1)

        def closure():
            optimizer.zero_grad()
            loss = (param**2).sum()
            loss.backward()
            return loss

        self.assertEqual(optimizer.step(closure).item(), 3.0)
        self.assertLess(optimizer.step(closure).item(), 3.0)

    def test_hyper_parameters_as_tensors(self):
        a, b = parameters(), parameters()
        run(lt.AdamW4bit(a, lr=0.01, betas=(0.8, 0.9)), a)
        tensors = {"lr": torch.tensor(0.01), "betas": (torch.tensor(0.8), torch.tensor(0.9))}
        optimizer = lt.AdamW4bit(b, **tensors)
        run(optimizer, b)
        self.assertTrue(all(map(torch.equal, a, b)))
        optimizer.param_groups[0]["lr"].fill_(0.0)
        optimizer.param_groups[0]["weight_decay"] = 0.0
        before = [p.detach().clone() for p in b]
        run(optimizer, b)
        self.assertTrue(all(map(torch.equal, before, b)))


class TestCalls(unittest.TestCase):
    def test_groups_step_in_one_call_and_the_plan_stays(self):
        params = parameters()
        optimizer = lt.AdamW4bit([{"params": params[:2], "lr": 0.1}, {"params": params[2:]}])
        run(optimizer, params)
        ((batch, members),) = optimizer._stepper._batches
        self.assertEqual(members, [0, 1, 2, 3])
        self.assertEqual(batch.plan.group_count, 2)
        run(optimizer, params)
        self.assertIs(optimizer._stepper._batches[0][0], batch)

    def test_what_an_optimizer_holds_goes_with_it(self):
        # Without a collection of cycles, which on a GPU may come too late for the next model.
        gc.collect()
        gc.disable()
        try:
            for make in (lt.AdamW4bit, lt.SGD4bit, lt.Lion4bit, lt.Adafactor, lt.SM3):
                params = parameters()
                optimizer = make(params)
                run(optimizer, params)
                states = optimizer.state[params[0]].values()
                held = [weakref.ref(thing) for thing in (optimizer, *params, *states)]
                del params, optimizer, states
                self.assertEqual([ref() for ref in held], [None] * len(held), make.__name__)
        finally:
            gc.enable()

    @support.needs(2, 1, "what it records a step with allocates")
    def test_nothing_is_allocated_after_the_first_step(self):
        params = parameters()
        optimizer = lt.AdamW4bit(params, weights="plain")
        run(optimizer, params)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            torch.empty(1000)  # the profiler does see allocations
        self.assertEqual(sum(max(0, e.cpu_memory_usage) for e in seen.events()), 4000)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            for step in range(3):
                optimizer.param_groups[0]["lr"] *= 0.5
                optimizer.step()
        events = [(e.name, e.cpu_memory_usage) for e in seen.events() if e.cpu_memory_usage > 0]
        self.assertEqual(events, [])

    def test_autograd_sees_the_change(self):
        param = torch.nn.Parameter(torch.ones(5))
        optimizer = lt.AdamW4bit([param])
        loss = (param**2).sum()
        param.grad = torch.ones(5)
        optimizer.step()
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            loss.backward()

    def test_a_moved_parameter_is_followed(self):
        a, b = parameters(), parameters()
        left, right = lt.AdamW4bit(a), lt.AdamW4bit(b)
        run(left, a, 2)
        run(right, b, 2)
        for p in b:
            p.data = p.data.clone()
            right.state[p] = {key: value.clone() for key, value in right.state[p].items()}
        fill(a, 2), fill(b, 2)
        left.step(), right.step()
        self.assertTrue(support.same(support.snapshot(left), support.snapshot(right)))

    def test_what_is_not_contiguous_is_stepped_by_copies(self):
        torch.manual_seed(0)
        values = torch.randn(32, 24, 8, 8)
        a = torch.nn.Parameter(values.clone())
        b = torch.nn.Parameter(values.clone().contiguous(memory_format=torch.channels_last))
        left, right = lt.AdamW4bit([a]), lt.AdamW4bit([b])
        for step in range(3):
            fill([a], step)
            b.grad = a.grad.clone().contiguous(memory_format=torch.channels_last)
            left.step(), right.step()
        self.assertFalse(b.is_contiguous())
        self.assertTrue(torch.equal(a, b))
        self.assertTrue(torch.equal(left.state[a]["m.codes"], right.state[b]["m.codes"]))

    def test_states_are_about_one_byte_a_parameter(self):
        # A transformer's block of width 768.
        shapes = [(2304, 768), (768, 768), (3072, 768), (768, 3072), (2304,), (768,), (3072,)]
        params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        optimizer = lt.AdamW4bit(params)
        fill(params)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            optimizer.step()
        allocated = sum(event.self_cpu_memory_usage for event in seen.events())
        numel = sum(p.numel() for p in params)
        states = sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values()
            for key, value in state.items()
            if key != "step"
        )
        self.assertEqual(states, optimizer.batches()[0].plan.state_bytes)
        self.assertLess(states / numel, 1.07)
        # With scratch and tables.
        self.assertLess(allocated / numel, 1.07)


class TestOptions(unittest.TestCase):
    def test_quantizers_by_name_and_as_dicts(self):
        for options, expected in (
            ({}, "m 4-bit block(128)/de, v 4-bit rank1/linear"),
            ({"v": "block"}, "v 4-bit block(128)/linear"),
            ({"v": "factored"}, "v factored"),
            ({"v": 32}, "v f32"),
            ({"m": "fp32"}, "m f32"),
            ({"m": {"bits": 4, "normalization": "block", "mapping": "nf4"}}, "block(128)/nf4"),
            ({"spec": "adamw4-block"}, "v 4-bit block(128)/linear"),
            ({"threshold": 10**6}, "<= threshold 1000000"),
        ):
            with self.subTest(**options):
                self.assertIn(expected, part(lt.AdamW4bit(parameters(), **options)))
        self.assertIn("m 8-bit", part(lt.AdamW8bit(parameters())))

    def test_overrides_by_name_module_and_parameter(self):
        net = torch.nn.Sequential(torch.nn.Linear(80, 100), torch.nn.Linear(100, 80))
        net.add_module("odd[*]", torch.nn.Linear(80, 80))
        overrides = [(net[1], 32), ("0.*", 8), (net[2].weight, {"v": {"bits": 32}})]
        optimizer = lt.AdamW4bit(net.named_parameters(), overrides=overrides)
        lines = optimizer.batches()[0].plan.report().splitlines()[1:]
        self.assertIn("m 8-bit block(256)/de, v 8-bit", lines[0])
        self.assertIn("m f32, v f32 (override", lines[2])
        self.assertIn("m 4-bit block(128)/de, v f32 (override", lines[4])
        self.assertIn("threshold", lines[5])
        # Without names, too.
        optimizer = lt.AdamW4bit(net.parameters(), overrides={net[1]: 32})
        lines = optimizer.batches()[0].plan.report().splitlines()[1:]
        self.assertIn("m f32, v f32 (override", lines[2])

    def test_a_group_has_quantizers_of_its_own(self):
        params = parameters()
        optimizer = lt.AdamW4bit(params[:1])
        optimizer.add_param_group({"params": params[1:], "spec": "adamw8", "threshold": 0})
        run(optimizer, params)
        self.assertEqual(optimizer.state[params[0]]["m.codes"].shape, (300, 129))
        self.assertEqual(optimizer.state[params[2]]["m.codes"].shape, (5000,))

    def test_weights_keep_what_16_bits_lose(self):
        values = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
        ends = {}
        for weights in ("plain", "stochastic", "master", "remainder16", "correction8"):
            param = torch.nn.Parameter(values.bfloat16())
            optimizer = lt.AdamW4bit([param], lr=1e-5, weight_decay=0, weights=weights)
            for _ in range(200):
                param.grad = torch.ones_like(param)
                optimizer.step()
            ends[weights] = (param.detach().float() - values.bfloat16().float()).mean().item()
        # A constant gradient moves everything by lr a step. Plainly, most steps vanish.
        for weights in ("stochastic", "master", "remainder16", "correction8"):
            self.assertAlmostEqual(ends[weights], -200e-5, delta=1e-4)
        self.assertGreater(ends["plain"], -100e-5)

    def test_an_f32_parameter_keeps_nothing_beside_it(self):
        params = parameters()[:1] + parameters(torch.bfloat16)[:1]
        optimizer = lt.AdamW4bit(params, weights="master")
        run(optimizer, params, 1)
        self.assertNotIn("weights.master", optimizer.state[params[0]])
        self.assertIn("weights.master", optimizer.state[params[1]])

    def test_gradients_that_are_not_finite(self):
        for nonfinite, stays in (("default", True), ("skip_step", True), ("propagate", False)):
            with self.subTest(nonfinite=nonfinite):
                params = [torch.nn.Parameter(torch.ones(8)), torch.nn.Parameter(torch.ones(9))]
                optimizer = lt.AdamW4bit(params, nonfinite=nonfinite)
                fill(params)
                params[0].grad[3] = float("nan")
                optimizer.step()
                self.assertEqual(params[0].isfinite().all().item(), stays)
                self.assertEqual(bool((params[1] == 1).all()), nonfinite == "skip_step")
                steps = optimizer.state[params[1]]["step"].item()
                self.assertEqual(steps, 0 if nonfinite == "skip_step" else 1)
                self.assertEqual(sum(optimizer.skipped()) > 0, stays)

    def test_torchs_switches_are_taken(self):
        params = parameters()
        run(lt.AdamW4bit(params, foreach=False, fused=True, capturable=True), params)
        with self.assertRaisesRegex(ValueError, "differentiable"):
            lt.AdamW4bit(params, differentiable=True)


class TestErrors(unittest.TestCase):
    def check(self, error, message, param, grad, **options):
        optimizer = lt.AdamW4bit([("layer.weight", param)], **options)
        param.grad = grad
        with self.assertRaisesRegex(error, message):
            optimizer.step()

    def test_steps_name_the_parameter(self):
        half = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.check(TypeError, "layer.weight has dtype torch.float64", half, torch.ones_like(half))
        table = torch.nn.Parameter(torch.ones(10, 4))
        sparse = torch.sparse_coo_tensor([[1]], torch.ones(1, 4), (10, 4))
        self.check(TypeError, "gradient of layer.weight is sparse", table, sparse)
        meta = torch.nn.Parameter(torch.ones(3, device="meta"))
        self.check(TypeError, "layer.weight is on meta", meta, torch.ones(3, device="meta"))
        plain = torch.nn.Parameter(torch.ones(3))
        options = {"m": {"bits": 4, "normalization": "row", "mapping": "de"}, "threshold": 0}
        options["nonfinite"] = "skip_block"
        self.check(lowbit.Error, "layer.weight", plain, torch.ones(3), **options)

    def test_a_spec_of_another_optimizer(self):
        with self.assertRaisesRegex(ValueError, "the spec is for lion, not for adamw"):
            lt.AdamW4bit(parameters(), spec="lion4")
        with self.assertRaisesRegex(lowbit.Error, "adamw5.*adamw4"):
            lt.AdamW4bit(parameters(), spec="adamw5")
        with self.assertRaisesRegex(ValueError, "Invalid weights value: 'mastre'"):
            lt.AdamW4bit(parameters(), weights="mastre")
        with self.assertRaisesRegex(ValueError, "use torch.optim.SGD"):
            lt.SGD4bit(parameters(), momentum=0)

    def test_states_of_another_spec(self):
        params = parameters()
        optimizer = lt.AdamW4bit(params)
        run(optimizer, params, 1)
        optimizer.state[params[0]]["m.codes"] = torch.zeros(3)
        with self.assertRaisesRegex(ValueError, "m.codes of 0 has"):
            optimizer.step()
        del optimizer.state[params[0]]["m.codes"]
        params[3].grad = None
        with self.assertRaisesRegex(KeyError, "the state of 0 .* not m.codes"):
            optimizer.step()


class TestImport(unittest.TestCase):
    def test_torch_and_jax_do_not_import_each_other(self):
        path = str(pathlib.Path(lowbit.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([path, *sys.path])}
        code = "import sys, lowbit; assert 'torch' not in sys.modules; import lowbit.torch; "
        code += "assert 'jax' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)


if __name__ == "__main__":
    unittest.main()
