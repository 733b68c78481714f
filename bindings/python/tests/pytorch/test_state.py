"""States: state_dict, copies, the common checkpoint, and to and from torch's own optimizers."""

import copy
import io
import pathlib
import pickle
import tempfile
import unittest

import support

import numpy as np
import torch

import lowbit
import lowbit.torch as lt


def pair(dtype=torch.float32, **options):
    net = support.model(dtype=dtype)
    return net, lt.AdamW4bit(net.named_parameters(), lr=1e-2, **options)


def continued(net, optimizer):
    """Five more steps' end."""
    support.train(net, optimizer, 5, begin=5)
    return support.snapshot(optimizer)


class TestStateDict(unittest.TestCase):
    def setUp(self):
        self.net, self.optimizer = pair(torch.bfloat16, weights="remainder16")
        support.train(self.net, self.optimizer, 5)
        self.saved = copy.deepcopy(self.optimizer.state_dict())
        self.params = copy.deepcopy(self.net.state_dict())
        self.expected = continued(self.net, self.optimizer)

    def check(self, state_dict, **options):
        net, optimizer = pair(torch.bfloat16, **options)
        net.load_state_dict(self.params)
        optimizer.load_state_dict(state_dict)
        dtypes = {value.dtype for value in optimizer.state[net[0].weight].values()}
        self.assertEqual(dtypes, {torch.uint8, torch.float32, torch.int16, torch.int32})
        self.assertTrue(support.same(continued(net, optimizer), self.expected))

    def test_dtypes_and_bits_are_kept(self):
        self.check(self.saved)

    def test_quantizers_come_with_the_state(self):
        self.check(self.saved, spec="adamw8", weights="plain")

    @support.needs(2, 0, "weights_only refuses numbers")
    def test_a_file_loads_with_weights_only(self):
        file = io.BytesIO()
        torch.save(self.saved, file)
        file.seek(0)
        self.check(torch.load(file, weights_only=True))
        # Codes of a 4-bit state are 4 bits in the file.
        numel = sum(p.numel() for p in self.net.parameters())
        self.assertLess(file.tell(), 4 * numel + 20_000)

    def test_loading_again_in_the_middle_of_training(self):
        net, optimizer = pair(torch.bfloat16, weights="remainder16")
        support.train(net, optimizer, 3)
        net.load_state_dict(self.params)
        optimizer.load_state_dict(self.saved)
        self.assertTrue(support.same(continued(net, optimizer), self.expected))

    @support.needs(2, 1, "optimizers have no such hooks")
    def test_hooks_of_the_user_see_tensors(self):
        net, optimizer = pair(torch.bfloat16, weights="remainder16")
        net.load_state_dict(self.params)
        seen = []

        def before(_, loaded):
            seen.append(loaded["state"][0]["m.codes"].dtype)

        def after(optimizer):
            seen.append(optimizer.state[net[0].weight]["m.codes"].dtype)

        optimizer.register_load_state_dict_pre_hook(before)
        optimizer.register_load_state_dict_post_hook(after)
        optimizer.load_state_dict(self.saved)
        self.assertEqual(seen, [torch.uint8, torch.uint8])

    def test_deepcopy_and_pickle(self):
        for copied in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
            net, optimizer = pair()
            support.train(net, optimizer, 5)
            other_net, other = copied((net, optimizer))
            self.assertTrue(
                support.same(continued(net, optimizer), continued(other_net, other))
            )
            other.add_param_group({"params": [("more", torch.nn.Parameter(torch.ones(2)))]})

    def test_an_override_by_module_is_pickled_as_names(self):
        net = support.model()
        optimizer = lt.AdamW4bit(net.named_parameters(), overrides={net[0]: 32})
        net, optimizer = pickle.loads(pickle.dumps((net, optimizer)))
        support.train(net, optimizer, 1)
        self.assertIn("m.value", optimizer.state[net[0].weight])


class TestCheckpoint(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "state.safetensors"

    def test_a_run_goes_on_with_equal_bits(self):
        for dtype, options in (
            (torch.float32, {}),
            (torch.bfloat16, {"weights": "correction8", "spec": "factor4"}),
            (torch.bfloat16, {"weights": "master", "amsgrad": True}),
        ):
            with self.subTest(dtype=dtype, **options):
                net, optimizer = pair(dtype, **options)
                support.train(net, optimizer, 5)
                lt.save(self.path, optimizer)
                params = copy.deepcopy(net.state_dict())
                expected = continued(net, optimizer)
                net, optimizer = pair(dtype, **options)
                net.load_state_dict(params)
                self.assertEqual(lt.load(self.path, optimizer), 5)
                self.assertTrue(support.same(continued(net, optimizer), expected))

    def test_the_c_abi_reads_and_writes_it(self):
        net, optimizer = pair()
        support.train(net, optimizer, 5)
        lt.save(self.path, optimizer)
        tensors = [lowbit.Tensor(name, tuple(p.shape)) for name, p in net.named_parameters()]
        # In another order.
        plan = lowbit.Plan("adamw4", tensors[::-1])
        state = plan.zeros()
        self.assertEqual(plan.load(self.path, state), 5)
        theirs = dict(zip(((b.tensor, b.state, b.part) for b in plan.buffers), state))
        codes = theirs[len(tensors) - 1, "m", "codes"]
        self.assertTrue(np.array_equal(codes, optimizer.state[net[0].weight]["m.codes"].numpy()))
        plan.save(self.path, state, 7)
        self.assertEqual(lt.load(self.path, optimizer), 7)
        self.assertEqual(optimizer.state[net[0].weight]["step"].item(), 7)

    def test_what_one_file_cannot_hold(self):
        net, optimizer = pair()
        support.train(net, optimizer, 1)
        optimizer.add_param_group(
            {"params": [("more", torch.nn.Parameter(torch.ones(2)))], "spec": "adamw8"}
        )
        with self.assertRaisesRegex(ValueError, "one spec and one count of steps"):
            lt.save(self.path, optimizer)

    def test_a_file_of_another_model(self):
        net, optimizer = pair()
        lt.save(self.path, optimizer)
        other = lt.AdamW4bit([("w", torch.nn.Parameter(torch.ones(3)))])
        with self.assertRaisesRegex(lowbit.Error, "FORMAT_MISMATCH"):
            lt.load(self.path, other)
        with self.assertRaisesRegex(lowbit.Error, "IO"):
            lt.load(self.path.with_name("absent"), optimizer)


class TestTakeover(unittest.TestCase):
    def adamw(self, cls=torch.optim.AdamW, **options):
        net = support.model()
        groups = [
            {"params": list(net[0].parameters()), "weight_decay": 0.0},
            {"params": list(net[2].parameters()), "lr": 3e-3},
        ]
        optimizer = cls(groups, lr=1e-2, **options)
        support.train(net, optimizer, 5)
        return net, optimizer

    def test_float32_states_are_taken_over_exactly(self):
        net, adamw = self.adamw(maximize=True)
        other = copy.deepcopy(net)
        ours = lt.AdamW4bit.from_adamw(adamw, params=other.parameters(), spec="adamw32")
        self.assertEqual(ours.param_groups[1]["lr"], 3e-3)
        self.assertEqual(ours.param_groups[0]["maximize"], True)
        support.train(net, adamw, 3, begin=5)
        support.train(other, ours, 3, begin=5)
        for p, q in zip(net.parameters(), other.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)

    def test_four_bits_and_back(self):
        net, adamw = self.adamw()
        ours = lt.AdamW4bit.from_adamw(adamw)
        back = ours.to_adamw()
        weight = net[0].weight
        self.assertIs(back.param_groups[0]["params"][0], weight)
        for key, bound in (("exp_avg", 0.2), ("exp_avg_sq", 0.1)):
            old, new = adamw.state[weight][key], back.state[weight][key]
            self.assertLess(((new - old).norm() / old.norm()).item(), bound)
        # States of small parameters are float32 on both sides.
        bias = net[0].bias
        self.assertTrue(torch.equal(adamw.state[bias]["exp_avg"], back.state[bias]["exp_avg"]))
        self.assertEqual(back.state[bias]["step"].item(), 5)
        self.assertEqual(back.param_groups[0]["weight_decay"], 0.0)
        self.assertNotIn("spec", back.param_groups[0])
        first, *_, last = support.train(net, back, 10, begin=5)
        self.assertTrue(np.isfinite(last))

    def test_adam(self):
        net, adam = self.adamw(torch.optim.Adam)
        back = lt.Adam4bit.from_adamw(adam, spec="adamw32").to_adamw()
        self.assertIsInstance(back, torch.optim.Adam)
        weight = net[2].weight
        left, right = adam.state[weight], back.state[weight]
        self.assertTrue(torch.equal(left["exp_avg_sq"], right["exp_avg_sq"]))

    def test_amsgrad(self):
        for cls, ours in ((torch.optim.AdamW, lt.AdamW4bit), (torch.optim.Adam, lt.Adam4bit)):
            net, adamw = self.adamw(cls, amsgrad=True)
            other = copy.deepcopy(net)
            exact = ours.from_adamw(adamw, params=other.parameters(), spec="adamw32")
            back = exact.to_adamw()
            for p, q in zip(net.parameters(), other.parameters()):
                self.assertEqual(len(back.state[q]), 4)
                for key, value in adamw.state[p].items():
                    self.assertTrue(torch.equal(back.state[q][key], value), key)
            support.train(net, adamw, 3, begin=5)
            support.train(other, exact, 3, begin=5)
            for p, q in zip(net.parameters(), other.parameters()):
                torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
            coded = ours.from_adamw(adamw)
            self.assertEqual(coded.state[net[0].weight]["vmax.codes"].dtype, torch.uint8)
            largest = coded.to_adamw().state[net[0].weight]["max_exp_avg_sq"]
            expected = adamw.state[net[0].weight]["max_exp_avg_sq"]
            self.assertLess(((largest - expected).norm() / expected.norm()).item(), 0.1)

    def test_a_group_without_amsgrad_beside_one_with_it(self):
        net = support.model()
        groups = [
            {"params": list(net[0].parameters()), "amsgrad": True},
            {"params": list(net[2].parameters())},
        ]
        adamw = torch.optim.AdamW(groups, lr=1e-2)
        support.train(net, adamw, 2)
        ours = lt.AdamW4bit.from_adamw(adamw)
        self.assertIn("vmax.codes", ours.state[net[0].weight])
        self.assertNotIn("vmax.value", ours.state[net[2].weight])
        back = ours.to_adamw()
        self.assertIn("max_exp_avg_sq", back.state[net[0].weight])
        self.assertNotIn("max_exp_avg_sq", back.state[net[2].weight])

    def test_what_cannot_be_taken_over(self):
        _, sgd = self.adamw(torch.optim.SGD)
        with self.assertRaisesRegex(TypeError, "SGD"):
            lt.AdamW4bit.from_adamw(sgd)


if __name__ == "__main__":
    unittest.main()
