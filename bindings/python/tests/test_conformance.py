"""The same bits as every other language: hashes, and a trainer continued from its checkpoint."""

import pathlib
import tempfile
import unittest

import conformance
import handover
import support

import numpy as np
import protocol

import lowbit


class TestConformance(unittest.TestCase):
    def test_hashes(self):
        expected = (support.ROOT / "tests" / "common" / "conformance.txt").read_text()
        self.assertEqual(protocol.lines(conformance.line), expected.splitlines())

    def test_a_trainer_is_continued(self):
        # Names that JAX sorts into another order than the trainer's.
        tensors = [lowbit.Tensor("wte", (300, 257)), lowbit.Tensor("h.0.ln", (64,))]
        plan = lowbit.Plan("adamw4", tensors, variant="reference")
        params = [support.param(i, tensor.shape) for i, tensor in enumerate(tensors)]
        grads = [
            [support.grad(10 * t + i, tensor.shape) for i, tensor in enumerate(tensors)]
            for t in range(8)
        ]
        hyper = {"lr": 3e-4, "beta1": 0.95, "beta2": 0.98, "eps": 1e-7, "weight_decay": 0.1}
        state = plan.zeros()
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            for t in range(8):
                if t == 3:
                    plan.save(folder / "state.safetensors", state, 3)
                    (folder / "params.f32").write_bytes(b"".join(p.tobytes() for p in params))
                if t >= 3:
                    bytes_of_all = b"".join(g.tobytes() for g in grads[t])
                    (folder / f"grad{t - 2}.f32").write_bytes(bytes_of_all)
                plan.step(params, grads[t], state, step=t + 1, **hyper)
            (folder / "spec.json").write_text(plan.spec.json)
            lines = [" ".join(map(str, (tensor.name, *tensor.shape))) for tensor in tensors]
            (folder / "tensors.txt").write_text("\n".join(lines) + "\n")
            numbers = [*hyper.values(), 1.0, 1.0, 0.0]
            (folder / "hyper.txt").write_text(" ".join(str(np.float32(x)) for x in numbers) + "\n")
            expected = handover.digest(params, state)
            self.assertEqual(handover.continued(folder), expected)


if __name__ == "__main__":
    unittest.main()
