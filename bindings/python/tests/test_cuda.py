"""What can be known of CUDA without a GPU: how a step is lowered, and what its handler does."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import support  # noqa: F401  (first: it chooses the platform)

import jax
import jax.numpy as jnp

import lowbit.jax

TESTS = pathlib.Path(__file__).resolve().parent


class TestLowering(unittest.TestCase):
    def lowered(self, door, donate=()):
        """The program for CUDA, as text."""
        optimizer = lowbit.jax.adamw(1e-3)
        params = {"b": jnp.zeros(5, jnp.bfloat16), "w": jnp.zeros((300, 257), jnp.bfloat16)}
        state = optimizer.init(params)

        def step(params, state, grads):
            return getattr(optimizer, door)(grads, state, params)

        traced = jax.jit(step, donate_argnums=donate).trace(params, state, params)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    def test_the_step_is_one_call_with_aliases_and_attributes(self):
        text = self.lowered("apply", donate=(0, 1))
        (call,) = re.findall(r"stablehlo\.custom_call @lowbit_xla_step\(.*", text)
        self.assertNotIn("callback", text)
        pairs = re.findall(r"output_tuple_indices = \[(\d+)\], *operand_index = (\d+)", call)
        # Two params, then behind two gradients the states: m, v of b; m codes, scales, v codes,
        # two vectors of w.
        expected = {i: 2 + i for i in range(2)} | {2 + i: 6 + i for i in range(7)}
        self.assertEqual({int(out): int(operand) for out, operand in pairs}, expected)
        self.assertIn('output = "param"', call)
        self.assertIn("nonfinite = 0 : i32", call)
        plan = re.search(r'plan = "((?:[^"\\]|\\.)*)"', call)[1]
        plan = json.loads(plan.replace("\\22", '"'))
        self.assertEqual([tensor["name"] for tensor in plan["tensors"]], ["b", "w"])
        # Parameters, counter and states are donated.
        self.assertGreaterEqual(text.count("tf.aliasing_output"), 9)

    def test_updates_alias_the_gradients(self):
        call = re.search(r"stablehlo\.custom_call @lowbit_xla_step\(.*", self.lowered("update"))[0]
        pairs = re.findall(r"output_tuple_indices = \[(\d+)\], *operand_index = (\d+)", call)
        self.assertEqual([(int(out), int(at)) for out, at in pairs if int(out) < 2], [(0, 4), (1, 5)])


class TestHandler(unittest.TestCase):
    def test_calls_with_a_mock_driver(self):
        """See device_calls.py, which runs in a process that finds the mock first."""
        driver = os.environ.get("LOWBIT_MOCK_DRIVER")
        self.assertIsNotNone(
            driver, "LOWBIT_MOCK_DRIVER is not set; `cargo xtask test jax` makes a mock driver"
        )
        compiler = shutil.which("c++") or shutil.which("g++")
        self.assertIsNotNone(compiler, "a C++ compiler is needed")
        with tempfile.TemporaryDirectory() as folder:
            frames = pathlib.Path(folder) / "frames.so"
            flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
            subprocess.run(
                [compiler, *flags, "-I", jax.ffi.include_dir()]
                + [str(TESTS / "frames.cpp"), "-o", str(frames)],
                check=True,
            )
            done = subprocess.run(
                [sys.executable, str(TESTS / "device_calls.py"), str(frames)],
                env={
                    **os.environ,
                    "LD_LIBRARY_PATH": driver,
                    "MOCK_COUNT": "2",
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
                capture_output=True,
                text=True,
                check=False,
            )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stderr, r"Ran [1-9]\d* tests")


if __name__ == "__main__":
    unittest.main()
