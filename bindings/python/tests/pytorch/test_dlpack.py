"""Memory shared with other libraries: plans of lowbit.core on torch's tensors, states elsewhere."""

import unittest

import support

import numpy as np
import torch

import lowbit
import lowbit.torch as lt

SHAPES = ((300, 257), (5000,))


class TestCore(unittest.TestCase):
    def test_a_plan_steps_torchs_tensors_with_the_bits_of_the_optimizer(self):
        for dtype in support.DTYPES:
            with self.subTest(dtype=dtype):
                params = [support.param(i, shape, dtype) for i, shape in enumerate(SHAPES)]
                tensors = [p.detach().clone() for p in params]
                grads = [support.grad(9 + i, shape, dtype) for i, shape in enumerate(SHAPES)]
                infos = [lowbit.Tensor(str(i), s, dtype, dtype) for i, s in enumerate(SHAPES)]
                plan = lowbit.Plan("adamw4", infos)
                state = list(map(torch.from_numpy, plan.zeros()))
                hyper = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
                plan.step(tensors, grads, state, step=1, weight_decay=0.01, **hyper)

                optimizer = lt.AdamW4bit(params)
                for param, grad in zip(params, grads):
                    param.grad = grad
                optimizer.step()
                expected = (*params, *support.state_tensors(optimizer))
                for ours, theirs in zip((*tensors, *state), expected, strict=True):
                    self.assertEqual(support.tensor_bytes(ours), support.tensor_bytes(theirs))

    def test_what_torch_does_not_hand_out_is_refused(self):
        plan = lowbit.Plan("adamw4", [lowbit.Tensor("w", (2, 3))])
        good, state = torch.ones(2, 3), plan.zeros()
        for param, error, message in (
            (torch.ones(3, 2).T, ValueError, "array 0 is not C-contiguous"),
            (torch.ones(2, 3, device="meta"), Exception, "meta"),
            (torch.nn.Parameter(torch.ones(2, 3)), Exception, "require gradient"),
            (torch.ones(7), lowbit.Error, "BUFFER_SIZE"),
        ):
            with self.assertRaisesRegex(error, message):
                plan.step([param], [good], state)


class TestStates(unittest.TestCase):
    def test_other_libraries_see_states_without_a_copy(self):
        net = support.model()
        optimizer = lt.AdamW4bit(net.parameters())
        support.train(net, optimizer, 1)
        codes = optimizer.state[net[0].weight]["m.codes"]
        seen = np.from_dlpack(codes)
        self.assertEqual(seen.ctypes.data, codes.data_ptr())
        before = seen.copy()
        support.train(net, optimizer, 1, begin=1)
        self.assertFalse(np.array_equal(seen, before))
        self.assertTrue(np.array_equal(seen, codes.numpy()))


if __name__ == "__main__":
    unittest.main()
