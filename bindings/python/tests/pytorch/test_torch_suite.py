"""The cases of torch's own optimizer tests, from the OptimizerInfo that its wheel ships.

The inputs, wrong inputs and schedulers are torch's (`torch.testing._internal.common_optimizers`);
what is asked of each is what torch's test_optim.py asks of its optimizers, where it is not about
sparse gradients, complex numbers or differentiable steps, which lowbit does not have.
"""

import copy
import io
import pickle
import unittest
import warnings

import support

import torch

if support.VERSION < (2, 5):
    raise unittest.SkipTest("before torch 2.5: its wheel lacks these cases")

from torch.nn import Parameter
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing._internal import common_optimizers as common
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, OptimizerInfo, optims
from torch.testing._internal.common_utils import TestCase

import lowbit.torch as lt


def inputs(of, **always):
    """torch's inputs for an optimizer, with arguments on top."""

    def found(device, dtype=None):
        results = of(device, dtype)
        for result in results:
            result.kwargs = {**result.kwargs, **always}
        return results

    return found


def sgd_inputs(device, dtype=None):
    """Those with a momentum."""
    return [i for i in common.optim_inputs_func_sgd(device, dtype) if i.kwargs.get("momentum")]


def lion_inputs(device, dtype=None):
    # Its steps are lr for every element; smaller ones are lost in bfloat16.
    options = [{}, {"weight_decay": 0.1}, {"maximize": True}, {"betas": (0.5, 0.6)}]
    return [
        common.OptimizerInput(params=None, kwargs={"lr": 0.01, **more}, desc=str(more))
        for more in options
    ]


ADAM = common.optim_inputs_func_adam
INFOS = [
    OptimizerInfo(
        lt.AdamW4bit,
        optim_inputs_func=inputs(common.optim_inputs_func_adamw, threshold=0),
        optim_error_inputs_func=common.optim_error_inputs_func_adamw,
    ),
    OptimizerInfo(
        lt.AdamW8bit,
        optim_inputs_func=inputs(common.optim_inputs_func_adamw),
        optim_error_inputs_func=common.optim_error_inputs_func_adamw,
    ),
    OptimizerInfo(
        lt.Adam4bit,
        optim_inputs_func=inputs(ADAM, threshold=0),
        optim_error_inputs_func=common.optim_error_inputs_func_adam,
    ),
    OptimizerInfo(
        lt.SGD4bit,
        optim_inputs_func=inputs(sgd_inputs, threshold=0),
        optim_error_inputs_func=common.optim_error_inputs_func_sgd,
    ),
    OptimizerInfo(
        lt.Lion4bit,
        optim_inputs_func=inputs(lion_inputs, threshold=0),
        optim_error_inputs_func=common.get_error_inputs_for_all_optims,
    ),
]

#: torch's counterparts, for the same inputs.
TORCHS = {"AdamW4bit": torch.optim.AdamW, "Adam4bit": torch.optim.Adam, "SGD4bit": torch.optim.SGD}
PLAIN = {"AdamW4bit": "adamw32", "Adam4bit": "adamw32", "SGD4bit": "sgdm32"}


def cases_of(info, device, dtype):
    found = info.optim_inputs_func(device=device, dtype=dtype)
    if len(found) < 4:
        raise AssertionError(f"torch has only {len(found)} inputs for {info.name}")
    return found


def make_model(device, dtype):
    torch.manual_seed(0)
    weight = Parameter(torch.randn(10, 5, device=device, dtype=dtype))
    bias = Parameter(torch.randn(10, device=device, dtype=dtype))
    x = torch.randn(5, device=device, dtype=dtype)
    return weight, bias, x


def closure(optimizer, weight, bias, x, sign=1):
    def evaluate():
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).pow(2).sum()
        (sign * loss).backward()
        return loss

    return evaluate


class TestSuite(TestCase):
    @optims(INFOS, dtypes=[torch.float32])
    def test_errors(self, device, dtype, optim_info):
        count = 0
        for error in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            given = error.optimizer_error_input
            params = given.params
            if params is None:
                params = [Parameter(torch.randn(1, device=device, dtype=dtype))]
            count += 1
            with self.subTest(desc=given.desc):
                self.assertEqual(error.error_on, OptimizerErrorEnum.CONSTRUCTION_ERROR)
                if issubclass(error.error_type, Warning):
                    with self.assertWarnsRegex(error.error_type, error.error_regex):
                        optim_info.optim_cls(params, **given.kwargs)
                else:
                    with self.assertRaisesRegex(error.error_type, error.error_regex):
                        optim_info.optim_cls(params, **given.kwargs)
        self.assertGreater(count, 5)

    @optims(INFOS, dtypes=[torch.float32, torch.bfloat16])
    def test_forloop_goes_right_direction(self, device, dtype, optim_info):
        schedules = [(), *optim_info.scheduler_inputs]
        for case in cases_of(optim_info, device, dtype):
            for makers in schedules:
                weight, bias, x = make_model(device, dtype)
                optimizer = optim_info.optim_cls([weight, bias], **copy.deepcopy(case.kwargs))
                schedulers = [make(optimizer) for make in makers]
                sign = -1 if case.kwargs.get("maximize") else 1
                evaluate = closure(optimizer, weight, bias, x, sign)
                first = evaluate().item()
                for _ in range(20):
                    loss = optimizer.step(evaluate)
                    for scheduler in schedulers:
                        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                            scheduler.step(loss)
                        else:
                            scheduler.step()
                self.assertLess(evaluate().item(), first, case.desc)

    @optims([info for info in INFOS if info.name in TORCHS], dtypes=[torch.float32])
    def test_the_same_as_torch(self, device, dtype, optim_info):
        for case in cases_of(optim_info, device, dtype):
            ends = []
            kwargs = {key: value for key, value in case.kwargs.items() if key != "threshold"}
            for cls, more in (
                (optim_info.optim_cls, {"spec": PLAIN[optim_info.name]}),
                (TORCHS[optim_info.name], {}),
            ):
                weight, bias, x = make_model(device, dtype)
                optimizer = cls([weight, bias], **copy.deepcopy(kwargs), **more)
                for _ in range(10):
                    optimizer.step(closure(optimizer, weight, bias, x))
                ends.append((weight, bias))
            self.assertEqual(*ends, rtol=1e-5, atol=1e-6, msg=case.desc)

    @optims(INFOS, dtypes=[torch.float32])
    def test_param_groups_lr_and_weight_decay(self, device, dtype, optim_info):
        for case in cases_of(optim_info, device, dtype):
            kwargs = {key: value for key, value in case.kwargs.items() if key != "lr"}
            weight, bias, x = make_model(device, dtype)
            groups = [{"params": [weight]}, {"params": [bias], "lr": 0.0, "weight_decay": 0.3}]
            optimizer = optim_info.optim_cls(groups, lr=1e-3, **kwargs)
            before = weight.clone(), bias.clone()
            optimizer.step(closure(optimizer, weight, bias, x))
            self.assertFalse(torch.equal(weight, before[0]))
            self.assertTrue(torch.equal(bias, before[1]))

    @optims(INFOS, dtypes=[torch.float32])
    def test_tensor_lr(self, device, dtype, optim_info):
        for case in cases_of(optim_info, device, dtype):
            kwargs = {key: value for key, value in case.kwargs.items() if key != "lr"}
            if kwargs.get("foreach"):
                continue
            ends = []
            for lr in (0.01, torch.tensor(0.01)):
                weight, bias, x = make_model(device, dtype)
                optimizer = optim_info.optim_cls([weight, bias], lr=lr, **copy.deepcopy(kwargs))
                scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
                for _ in range(5):
                    optimizer.step(closure(optimizer, weight, bias, x))
                    scheduler.step()
                ends.append((weight, bias))
            self.assertEqual(*ends, msg=case.desc)

    @optims(INFOS, dtypes=[torch.float32, torch.bfloat16])
    def test_state_dict_deterministic(self, device, dtype, optim_info):
        for case in cases_of(optim_info, device, dtype):
            weight, bias, x = make_model(device, dtype)
            optimizer = optim_info.optim_cls([weight, bias], **copy.deepcopy(case.kwargs))
            for _ in range(5):
                optimizer.step(closure(optimizer, weight, bias, x))
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            other_weight, other_bias = copy.deepcopy((weight, bias))
            other = optim_info.optim_cls([other_weight, other_bias], **copy.deepcopy(case.kwargs))
            other.load_state_dict(torch.load(file, weights_only=True))
            for _ in range(5):
                optimizer.step(closure(optimizer, weight, bias, x))
                other.step(closure(other, other_weight, other_bias, x))
                self.assertTrue(
                    support.same(support.snapshot(optimizer), support.snapshot(other)), case.desc
                )

    @optims(INFOS, dtypes=[torch.float32])
    def test_deepcopy_and_pickle(self, device, dtype, optim_info):
        for case in cases_of(optim_info, device, dtype):
            weight, bias, x = make_model(device, dtype)
            optimizer = optim_info.optim_cls([weight, bias], **copy.deepcopy(case.kwargs))
            optimizer.step(closure(optimizer, weight, bias, x))
            for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
                for state in other.state.values():
                    self.assertNotEqual(len(state), 0)
                params = other.param_groups[0]["params"]
                other.step(closure(other, *params, x))
                self.assertFalse(torch.equal(params[0], weight))

    @optims(INFOS, dtypes=[torch.float32])
    def test_an_older_state_dict_without_later_options(self, device, dtype, optim_info):
        weight, bias, x = make_model(device, dtype)
        optimizer = optim_info.optim_cls([weight, bias])
        optimizer.step(closure(optimizer, weight, bias, x))
        saved = copy.deepcopy(optimizer.state_dict())
        for group in saved["param_groups"]:
            for key in ("foreach", "fused", "capturable", "differentiable"):
                del group[key]
        optimizer.load_state_dict(saved)
        optimizer.step(closure(optimizer, weight, bias, x))

    @optims(INFOS, dtypes=[torch.float32])
    def test_step_is_noop_without_grads(self, device, dtype, optim_info):
        weight, bias, x = make_model(device, dtype)
        optimizer = optim_info.optim_cls([weight, bias])
        before = weight.clone(), bias.clone()
        optimizer.step()
        self.assertEqual((weight, bias), before)
        self.assertEqual(len(optimizer.state), 0)

    @optims(INFOS, dtypes=[torch.float32])
    def test_step_is_noop_for_zero_grads(self, device, dtype, optim_info):
        weight, bias, x = make_model(device, dtype)
        optimizer = optim_info.optim_cls([weight, bias], weight_decay=0.0)
        before = weight.clone(), bias.clone()
        for _ in range(3):
            weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
            optimizer.step()
        self.assertEqual((weight, bias), before)

    @optims(INFOS, dtypes=[torch.float32])
    def test_grads_of_no_elements(self, device, dtype, optim_info):
        empty = Parameter(torch.randn(5, 0, device=device, dtype=dtype))
        weight, bias, x = make_model(device, dtype)
        optimizer = optim_info.optim_cls([weight, empty, bias])
        empty.grad = torch.rand(5, 0, device=device, dtype=dtype)
        for _ in range(3):
            weight.grad, bias.grad = torch.ones_like(weight), torch.ones_like(bias)
            optimizer.step()

    @optims(INFOS, dtypes=[torch.float32])
    def test_step_hooks(self, device, dtype, optim_info):
        weight, bias, x = make_model(device, dtype)
        optimizer = optim_info.optim_cls([weight, bias])
        calls = []
        handles = [
            optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
            optimizer.register_step_post_hook(lambda *_: calls.append("post")),
            register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
            register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
        ]
        optimizer.step()
        self.assertEqual(calls, ["global pre", "pre", "post", "global post"])
        for handle in handles:
            handle.remove()
        optimizer.step()
        self.assertEqual(len(calls), 4)

    @optims(INFOS, dtypes=[torch.float32])
    def test_state_dict_hooks(self, device, dtype, optim_info):
        weight, bias, x = make_model(device, dtype)
        optimizer = optim_info.optim_cls([weight, bias])
        optimizer.step(closure(optimizer, weight, bias, x))
        optimizer.register_state_dict_post_hook(lambda _, found: {**found, "more": 1})
        self.assertEqual(optimizer.state_dict()["more"], 1)

    @optims(INFOS, dtypes=[torch.float32])
    def test_named_parameters(self, device, dtype, optim_info):
        weight, bias, x = make_model(device, dtype)
        optimizer = optim_info.optim_cls([("weight", weight), ("bias", bias)])
        optimizer.step(closure(optimizer, weight, bias, x))
        saved = optimizer.state_dict()
        self.assertEqual(saved["param_groups"][0]["param_names"], ["weight", "bias"])
        with self.assertRaisesRegex(ValueError, "with/without names"):
            optimizer.add_param_group({"params": Parameter(torch.ones(1))})
        optimizer.add_param_group({"params": [("more", Parameter(torch.ones(1)))]})
        self.assertEqual(len(optimizer.names()), 3)

    @optims(INFOS, dtypes=[torch.float32])
    def test_multiple_devices_are_single_calls(self, device, dtype, optim_info):
        weight, bias, x = make_model(device, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer = optim_info.optim_cls([weight, bias])
            optimizer.step(closure(optimizer, weight, bias, x))
        self.assertEqual(len(optimizer._stepper._batches), 1)


instantiate_device_type_tests(TestSuite, globals(), only_for="cpu")

if __name__ == "__main__":
    unittest.main()
