"""The package without JAX: finding the library, specs, plans, steps on numpy arrays."""

import ctypes.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import weakref
import zlib
from unittest import mock

import support

import numpy as np
import safetensors.numpy

import lowbit
from lowbit import _c_api, _library, checkpoint, core


class TestLibrary(unittest.TestCase):
    def setUp(self):
        # Not that of the other tests: it stays loaded.
        _library.library()
        self.cached = _library.library
        _library.library = _library.library.__wrapped__
        self.addCleanup(setattr, _library, "library", self.cached)

    def test_a_missing_library_names_both_places(self):
        with mock.patch.dict(os.environ, {"LOWBIT_LIBRARY": "/nowhere/liblowbit.so"}):
            with self.assertRaisesRegex(OSError, "LOWBIT_LIBRARY is /nowhere/liblowbit.so.*lowbit"):
                lowbit.library_path()
        with mock.patch.dict(os.environ), mock.patch.object(_library, "_FILE", "absent.so"):
            os.environ.pop("LOWBIT_LIBRARY", None)
            with self.assertRaisesRegex(OSError, "LOWBIT_LIBRARY is not set.*absent.so does not"):
                lowbit.library_path()

    def test_another_abi_is_refused(self):
        for name, value in (("LOWBIT_ABI_MAJOR", 99), ("LOWBIT_ABI_MINOR", 99)):
            with mock.patch.object(_c_api, name, value):
                with self.assertRaisesRegex(OSError, "this package needs .*99"):
                    _library.library()

    def test_another_library_is_refused(self):
        other = ctypes.util.find_library("m")
        with mock.patch.object(_library, "library_path", lambda: other):
            with self.assertRaisesRegex(OSError, "is not the lowbit library"):
                _library.library()

    def test_import_does_not_import_jax(self):
        code = "import sys, lowbit; lowbit.version(); assert 'jax' not in sys.modules"
        path = str(pathlib.Path(lowbit.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": path}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)


class TestSpec(unittest.TestCase):
    def test_forms_are_equal(self):
        preset = lowbit.Spec("adamw4-block")
        self.assertEqual(lowbit.Spec(preset), preset)
        self.assertEqual(hash(lowbit.Spec(preset)), hash(preset))
        self.assertNotEqual(preset, lowbit.Spec("adamw4"))

    def test_errors_have_status_and_text(self):
        with self.assertRaises(lowbit.Error) as raised:
            lowbit.Spec({"optimizer": "adamw", "betas": [0.9, 0.999]})
        self.assertEqual(raised.exception.status, _c_api.LOWBIT_STATUS_INVALID_ARGUMENT)
        self.assertEqual(raised.exception.name, "INVALID_ARGUMENT")
        self.assertIn("betas", str(raised.exception))


class Producer:
    """A tensor of another library."""

    def __init__(self, array):
        # numpy hands out no bfloat16.
        self.array = array.view(np.uint16) if array.dtype.itemsize == 2 else array

    def __dlpack__(self, **asked):
        return self.array.__dlpack__(**asked)


class OldProducer(Producer):
    """One from before DLPack 1.0."""

    def __dlpack__(self):
        return self.array.__dlpack__()


class TestPlan(unittest.TestCase):
    def setUp(self):
        tensors = [lowbit.Tensor("w", (300, 257)), lowbit.Tensor("b", (3,), "bf16", "f32")]
        self.plan = lowbit.Plan("adamw4", tensors)
        self.params = [support.param(0, (300, 257)), support.param(1, (3,), "bf16")]
        self.grads = [support.grad(0, (300, 257)), support.grad(1, (3,))]

    def test_buffers(self):
        parts = [(info.tensor, info.state, info.part) for info in self.plan.buffers]
        w = [("m", "codes"), ("m", "scales"), ("v", "codes"), ("v", "axis0"), ("v", "axis1")]
        self.assertEqual(parts, [(0, *p) for p in w] + [(1, "m", "value"), (1, "v", "value")])
        self.assertEqual(self.plan.buffers[0].shape, (300, 129))
        self.assertEqual(self.plan.state_bytes, sum(a.nbytes for a in self.plan.zeros()))
        self.assertIn("4-bit rank1/linear", self.plan.report())

    def test_update_is_what_step_adds(self):
        updates = [np.empty_like(p) for p in self.params]
        before = [p.copy() for p in self.params]
        self.plan.step(self.params, self.grads, self.plan.zeros(), updates=updates)
        self.assertTrue(all(map(support.same, before, self.params)))
        self.plan.step(self.params, self.grads, self.plan.zeros())
        self.assertTrue(support.same(before[0] + updates[0], self.params[0]))

    def test_stages_are_a_step(self):
        for spec, reduces in (("adamw4", ["max"]), ("adafactor", ["max", "sum", "max", "sum"])):
            plan = lowbit.Plan(spec, self.plan.tensors)
            self.assertEqual([stage.reduce for stage in plan.stages], reduces)
            params, other = self.params, [p.copy() for p in self.params]
            state, other_state, scratch = plan.zeros(), plan.zeros(), plan.scratch()
            plan.step(params, self.grads, state)
            for stage, info in enumerate(plan.stages):
                plan.collect(stage, scratch, other, self.grads, other_state)
                statistics = plan.statistics(scratch, stage)
                self.assertEqual(statistics.dtype, {"i32": np.int32, "i64": np.int64}[info.dtype])
            plan.apply(scratch, other, self.grads, other_state)
            self.assertTrue(all(map(support.same, params + state, other + other_state)))
            with self.assertRaisesRegex(lowbit.Error, f"the plan has {len(reduces)} collecting"):
                plan.collect(len(reduces), scratch, other, self.grads, other_state)

    def test_groups_step_as_plans_of_their_own(self):
        tensors = [self.plan.tensors[0], self.plan.tensors[1]._replace(group=1)]
        plan = lowbit.Plan("adamw4", tensors)
        self.assertEqual(plan.group_count, 2)
        groups = [{"lr": 0.25}, {"lr": 0.125, "weight_decay": 0.5}]
        expected = []
        for tensor, param, grad, group in zip(tensors, self.params, self.grads, groups):
            alone = lowbit.Plan("adamw4", [tensor._replace(group=0)])
            expected.append(param.copy())
            alone.step([expected[-1]], [grad], alone.zeros(), step=3, beta1=0.8, **group)
        plan.step(self.params, self.grads, plan.zeros(), step=3, beta1=0.8, groups=groups)
        self.assertTrue(all(map(support.same, self.params, expected)))
        with self.assertRaisesRegex(lowbit.Error, "2 groups"):
            plan.step(self.params, self.grads, plan.zeros())
        with self.assertRaisesRegex(ValueError, "1 groups are given; the plan has 2"):
            plan.step(self.params, self.grads, plan.zeros(), groups=groups[:1])
        with self.assertRaisesRegex(TypeError, "betas"):
            plan.step(self.params, self.grads, plan.zeros(), groups=[{"betas": 1}, {}])

    def test_what_is_kept_beside_a_parameter(self):
        forms = {"master": np.float32, "remainder16": np.uint16, "correction8": np.int8}
        tensors = [lowbit.Tensor(form, (5,), "bf16", "bf16", form) for form in forms]
        plan = lowbit.Plan("lion4", tensors)
        beside = [info for info in plan.buffers if info.state == "weights"]
        self.assertEqual([info.numpy_dtype for info in beside], list(forms.values()))
        with self.assertRaisesRegex(lowbit.Error, "remainder16.*f16"):
            lowbit.Plan("lion4", [lowbit.Tensor("w", (5,), "f16", "f16", "remainder16")])

    def test_arrays_that_cannot_be_written_are_refused(self):
        self.params[0].flags.writeable = False
        with self.assertRaisesRegex(ValueError, "array 0 is read-only"):
            self.plan.step(self.params, self.grads, self.plan.zeros())
        self.grads[0] = np.asfortranarray(self.grads[0])
        with self.assertRaisesRegex(ValueError, "array 0 is not C-contiguous"):
            self.plan.save("/nowhere", self.grads, 0)

    def test_tensors_of_any_library_by_dlpack(self):
        expected, expected_state = [p.copy() for p in self.params], self.plan.zeros()
        self.plan.step(expected, self.grads, expected_state)
        for kind in (Producer, OldProducer):
            params, state = [p.copy() for p in self.params], self.plan.zeros()
            self.plan.step(*([kind(a) for a in some] for some in (params, self.grads, state)))
            self.assertTrue(all(map(support.same, params + state, expected + expected_state)))
        backwards = [Producer(g[::-1]) for g in self.grads]
        with self.assertRaisesRegex(ValueError, "array 0 is not C-contiguous"):
            self.plan.step(self.params, backwards, self.plan.zeros())
        self.params[0].flags.writeable = False
        with self.assertRaisesRegex(ValueError, "array 0 is read-only"):
            self.plan.step(list(map(Producer, self.params)), self.grads, self.plan.zeros())
        with self.assertRaisesRegex(TypeError, "array 0 is a list: neither"):
            self.plan.step([[1.0]], self.grads, self.plan.zeros())

    def test_misfits_are_named(self):
        with self.assertRaisesRegex(lowbit.Error, r"grads\[0\] \(w\) has 12 bytes"):
            self.plan.step(self.params, self.grads[::-1], self.plan.zeros())
        with self.assertRaisesRegex(lowbit.Error, r'tensor 0 \("w"\).*-1'):
            lowbit.Plan("adamw4", [lowbit.Tensor("w", (-1,))])

    def test_compress_and_decompress(self):
        x = {"bits": 8, "normalization": "block", "block": 128, "mapping": "de"}
        plan = lowbit.Plan({"optimizer": "none", "threshold": 0, "x": x}, self.plan.tensors)
        state = plan.zeros()
        plan.compress("x", self.grads, state)
        for restored, grad in zip(plan.decompress("x", state), self.grads, strict=True):
            self.assertEqual(restored.dtype, np.float32)
            # No two of the map's 256 levels are 2 % of the largest apart.
            self.assertLess(abs(restored - grad).max(), 0.01 * abs(grad).max())
            self.assertGreater(abs(restored - grad).max(), 0)
        with self.assertRaisesRegex(lowbit.Error, "m"):
            plan.decompress("m", state)

    def test_arguments_outlive_the_call(self):
        """Arrays that nobody but the call has a reference to."""
        made = []

        def fresh(arrays):
            arrays = [array.copy() for array in arrays]
            made.extend(map(weakref.ref, arrays))
            return arrays

        def call(function, *arguments):
            seen.append(function)
            self.assertTrue(made and all(ref() is not None for ref in made), function)
            made.clear()

        seen, plan, state = [], self.plan, self.plan.zeros()
        with mock.patch.object(core, "call", call), tempfile.TemporaryDirectory() as folder:
            plan.step(fresh(self.params), fresh(self.grads), fresh(state))
            plan.collect(0, *fresh([plan.scratch()]), fresh(self.params), self.grads, fresh(state))
            plan.apply(*fresh([plan.scratch()]), fresh(self.params), self.grads, fresh(state))
            plan.compress("m", fresh(self.grads), fresh(state))
            plan.decompress("m", fresh(state))
            plan.save(f"{folder}/a", fresh(state), 1)
            plan.load(f"{folder}/a", fresh(state))
        self.assertEqual(len(seen), 7)

    def test_checkpoint(self):
        state = self.plan.zeros()
        self.plan.step(self.params, self.grads, state)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "state.safetensors"
            self.plan.save(path, state, 1)
            other = self.plan.zeros()
            self.assertEqual(self.plan.load(path, other), 1)
            self.assertTrue(all(map(support.same, state, other)))
            self.check_by_safetensors(path, state)
        with self.assertRaisesRegex(lowbit.Error, "IO"):
            self.plan.load("/nowhere/at/all", other)

    def test_checkpoint_files(self):
        state = self.plan.zeros()
        self.plan.step(self.params, self.grads, state)
        with tempfile.TemporaryDirectory() as folder:
            folder, reports = pathlib.Path(folder), []
            whole, parts = folder / "whole", folder / "parts.json"
            self.plan.save(whole, state, 1, progress=lambda *report: reports.append(report))
            self.assertEqual(reports[-1], (whole.stat().st_size,) * 2)
            checkpoint.split(whole, parts, 3)
            other = self.plan.zeros()
            self.assertEqual(self.plan.load(parts, other), 1)
            self.assertTrue(all(map(support.same, state, other)))
            checkpoint.merge(parts, folder / "merged")
            self.assertEqual((folder / "merged").read_bytes(), whole.read_bytes())
            self.plan.reshard(parts, folder / "again")
            checkpoint.write_index(folder / "again.json", [folder / "again"])
            tensor = self.plan.tensors[0]
            described = checkpoint.describe(folder / "again.json")
            self.assertEqual(described["step"], 1)
            self.assertEqual(described["tensors"][0]["name"], tensor.name)
            expected = self.plan.decompress("m", state)[0]
            self.assertTrue(support.same(checkpoint.values(parts, tensor.name, "m"), expected))
            offset = [extent // 2 for extent in tensor.shape]
            shape = [extent - start for extent, start in zip(tensor.shape, offset, strict=True)]
            found = checkpoint.values(parts, tensor.name, "m", offset, shape)
            cut = tuple(slice(start, None) for start in offset)
            self.assertTrue(support.same(found, np.ascontiguousarray(expected[cut])))
            for step in range(3):
                self.plan.save(folder / "run-{step}", state, step, keep=2)
            kept = sorted(path.name for path in folder.glob("run-*"))
            self.assertEqual(kept, ["run-1", "run-2"])

            def fail(done, total):
                raise ZeroDivisionError

            with self.assertRaises(ZeroDivisionError):
                self.plan.load(whole, other, progress=fail)
            with self.assertRaises(KeyError):
                checkpoint.values(whole, "none", "m")

    def check_by_safetensors(self, path, state):
        """The file by the safetensors package and zlib alone."""
        entries = safetensors.numpy.load_file(path)
        sums = entries.pop("lowbit/crc32").view("<u4").ravel()
        self.assertEqual(len(entries), len(state))
        for info, array in zip(self.plan.buffers, state):
            name = f"{self.plan.tensors[info.tensor].name}/{info.state}/{info.part}"
            self.assertTrue(support.same(entries[name], array), name)
        data = path.read_bytes()
        head = 8 + int.from_bytes(data[:8], "little")
        places = json.loads(data[8:head])
        metadata = json.loads(places.pop("__metadata__")["lowbit"])
        self.assertEqual((metadata["format"], metadata["step"]), (1, 1))
        spans = sorted(place["data_offsets"] for place in places.values())[:-1]
        found = [zlib.crc32(data[:head])]
        found += [zlib.crc32(data[head + first : head + end]) for first, end in spans]
        self.assertEqual(found, sums.tolist())


if __name__ == "__main__":
    unittest.main()
