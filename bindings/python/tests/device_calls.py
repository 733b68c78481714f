"""The handler for CUDA, called by hand with a mock driver in the place of libcuda: device_calls.py FRAMES

FRAMES is the library made of frames.cpp. The mock's folder must be on LD_LIBRARY_PATH when the
process starts; its device memory is the host's, so numpy arrays are device arrays here. Run by
test_cuda.py.
"""

import ctypes
import json
import sys
import unittest

import numpy as np

import lowbit
from lowbit._library import library

INITIALIZE, EXECUTE = 2, 3
INVALID_ARGUMENT, FAILED_PRECONDITION = 3, 9
#: Device 0 and device 1 of the mock.
STREAM, OTHER_STREAM = 0x57, 0x157
CALLER_CONTEXT = 0xC0

#: What finding the plan asks of the driver.
LOOK_UP = ["cuStreamGetCtx", "cuCtxPushCurrent_v2", "cuCtxGetDevice", "cuCtxPopCurrent_v2"]
#: What an execution may ask as well: nothing that allocates, waits, or brings host memory.
ENQUEUING = {"cuMemsetD8Async", "cuLaunchKernel", "cuMemcpyDtoDAsync_v2", *LOOK_UP}

SHAPES = ((70, 150), (4097,), (100,))
_DTYPES = {np.float32: 11, np.uint16: 16, np.uint8: 6, np.int32: 4}


class XlaBuffer(ctypes.Structure):
    """XLA_FFI_Buffer, which test_layout.py compares with the header."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    ]


def buffers(arrays):
    """An array of pointers to XLA_FFI_Buffer, and what it keeps alive."""
    structs = [
        XlaBuffer(
            *(ctypes.sizeof(XlaBuffer), None, _DTYPES[array.dtype.type], array.ctypes.data),
            *(array.ndim, (ctypes.c_int64 * array.ndim)(*array.shape)),
        )
        for array in arrays
    ]
    return (ctypes.POINTER(XlaBuffer) * len(structs))(*map(ctypes.pointer, structs))


class Model:
    """Tensors on both sides; `params` and `state` are XLA's buffers, `want` the reference's."""

    def __init__(self, preset, output="param", threads=1):
        rng = np.random.default_rng(7)
        tensors = [lowbit.Tensor(f"t{i}", s, "bf16", "f32") for i, s in enumerate(SHAPES)]
        self.plan = lowbit.Plan(preset, tensors, variant="reference")
        self.json = json.dumps(
            {
                "spec": json.loads(self.plan.spec.json),
                "tensors": [tensor._asdict() for tensor in tensors],
                "threads": threads,
            }
        )
        self.output = output
        self.rng = rng
        self.params = [
            (rng.standard_normal(s).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            for s in SHAPES
        ]
        self.state = self.plan.zeros()
        self.want_params = [array.copy() for array in self.params]
        self.want_state = self.plan.zeros()
        self.step_number = 0
        self.skipped = np.full((2, 2), 77, np.int32)

    def arrays(self, aliased=True):
        """Operands and results of the next step; its gradients, of which one is not finite."""
        grads = [self.rng.standard_normal(s).astype(np.float32) for s in SHAPES]
        grads[0].flat[333] = np.nan
        hyper = np.array([1e-2, 0.9, 0.99, 1e-8, 0.1, 0.5, 0.5, 0], np.float32)
        step = np.array(self.step_number + 1, np.int32)
        operands = [hyper, step, *self.params, *grads, *self.state]
        if self.output == "update":
            outputs = [np.zeros_like(array) for array in self.params]
        else:
            outputs = self.params if aliased else [np.zeros_like(a) for a in self.params]
        states = self.state if aliased else [np.full_like(a, 3) for a in self.state]
        words = self.plan.scratch_bytes // 4 + 2 * len(SHAPES)
        scratch = np.full(words + words % 2, -1, np.int32)
        return operands, [*outputs, *states, scratch, self.skipped], grads, hyper

    def step(self, case, aliased=True):
        """One step on both sides, compared."""
        operands, results, grads, hyper = self.arrays(aliased)
        case.assertIsNone(self.call(EXECUTE, operands, results))
        self.step_number += 1
        names = ("lr", "beta1", "beta2", "eps", "weight_decay", "grad_scale", "clip_factor")
        updates = None
        if self.output == "update":
            updates = [np.zeros_like(array) for array in self.params]
        skipped = self.plan.step(
            *(self.want_params, grads, self.want_state),
            step=self.step_number,
            updates=updates,
            **dict(zip(names, map(float, hyper))),
        )
        tensors = len(SHAPES)
        want = (updates or self.want_params) + self.want_state
        for found, expected in zip(results[: tensors + len(self.state)], want):
            case.assertEqual(found.tobytes(), expected.tobytes())
        case.assertEqual(tuple(self.skipped.view(np.int64).ravel()), skipped)

    def call(self, stage, operands=(), results=(), stream=STREAM):
        """None, or code and text of the error."""
        text = ctypes.create_string_buffer(1025)
        code = FRAMES.frames_call(
            *(HANDLER, stage, ctypes.c_void_p(stream)),
            *(buffers(operands), ctypes.c_int64(len(operands))),
            *(buffers(results), ctypes.c_int64(len(results))),
            *(self.json.encode(), self.output.encode(), ctypes.c_int32(0)),
            *(text, ctypes.c_size_t(len(text))),
        )
        return (code, text.value.decode()) if code else None


def calls(function):
    """What the function returns, and the names of the driver's functions that it called."""
    MOCK.mock_forget_calls()
    MOCK.mock_set_context(ctypes.c_void_p(CALLER_CONTEXT))
    result = function()
    assert MOCK.mock_current_context() == CALLER_CONTEXT, "another context is current"
    return result, MOCK.mock_calls().decode().split()


class TestHandler(unittest.TestCase):
    def tearDown(self):
        self.assertEqual(FRAMES.frames_live_errors(), 0)

    def test_says_that_it_may_be_captured(self):
        for name, expected in (("lowbit_xla_step", 0), ("lowbit_xla_step_cuda", 1)):
            version, traits = (ctypes.c_int * 2)(), ctypes.c_uint32(9)
            handler = getattr(library(), name)
            FRAMES.frames_metadata(handler, version, ctypes.byref(traits))
            self.assertEqual((tuple(version), traits.value), ((0, 1), expected), name)

    def test_steps_equal_the_reference_and_only_enqueue(self):
        for preset in ("adamw4", "adamw4-block", "adamw32"):
            for output in ("param", "update"):
                with self.subTest(preset=preset, output=output):
                    model = Model(preset, output)
                    error, made = calls(lambda: model.call(INITIALIZE))
                    self.assertIsNone(error)
                    if output == "param":
                        self.assertIn("cuMemcpyHtoDAsync_v2", made)
                    for _ in range(3):
                        # XLA initializes before every execution.
                        error, made = calls(lambda: model.call(INITIALIZE))
                        self.assertEqual((error, made), (None, LOOK_UP))
                        _, made = calls(lambda: model.step(self))
                        self.assertEqual(made[:4], LOOK_UP)
                        self.assertIn("cuLaunchKernel", made)
                        self.assertLessEqual(set(made), ENQUEUING - {"cuMemcpyDtoDAsync_v2"})
                        self.assertEqual(MOCK.mock_last_stream(), STREAM)

    def test_results_that_are_not_aliased_are_copied_on_the_device(self):
        model = Model("adamw4-block", threads=2)
        self.assertIsNone(model.call(INITIALIZE))
        _, made = calls(lambda: model.step(self, aliased=False))
        self.assertEqual(made.count("cuMemcpyDtoDAsync_v2"), len(SHAPES) + len(model.state))
        self.assertLessEqual(set(made), ENQUEUING)

    def test_execution_before_initialization_is_refused(self):
        model = Model("adamw4", threads=3)
        code, text = model.call(EXECUTE, *model.arrays()[:2])
        self.assertEqual(code, FAILED_PRECONDITION)
        self.assertIn("before it was initialized", text)

    def test_each_device_has_its_plan(self):
        model = Model("adamw4", threads=4)
        self.assertIsNone(model.call(INITIALIZE))
        arrays = model.arrays()[:2]
        code, text = model.call(EXECUTE, *arrays, stream=OTHER_STREAM)
        self.assertEqual(code, FAILED_PRECONDITION)
        self.assertIn("Cuda(1) before it was initialized", text)
        self.assertIsNone(model.call(INITIALIZE, stream=OTHER_STREAM))
        self.assertIsNone(model.call(EXECUTE, *arrays, stream=OTHER_STREAM))
        self.assertEqual(MOCK.mock_last_stream(), OTHER_STREAM)

    def test_other_stages_do_nothing(self):
        model = Model("adamw4", threads=5)
        for stage in (0, 1):
            error, made = calls(lambda: model.call(stage, stream=0))
            self.assertEqual((error, made), (None, []))

    def test_errors_have_their_reason(self):
        model = Model("adamw4", threads=6)
        self.assertIsNone(model.call(INITIALIZE))
        operands, results, *_ = model.arrays()
        short = [*results[:-2], np.zeros(2, np.int32), results[-1]]
        for reason, code, arguments in (
            ("no GPU stream here", INVALID_ARGUMENT, {"stream": 0}),
            ("scratch has shape [2]; the plan needs", INVALID_ARGUMENT, {"results": short}),
            ("operands given", INVALID_ARGUMENT, {"operands": operands[1:]}),
        ):
            with self.subTest(reason=reason):
                given = {"operands": operands, "results": results, **arguments}
                (found, text), made = calls(lambda: model.call(EXECUTE, **given))
                self.assertEqual(found, code)
                self.assertIn(reason, text)
                self.assertNotIn("cuLaunchKernel", made)


if __name__ == "__main__":
    FRAMES = ctypes.CDLL(sys.argv.pop(1))
    MOCK = ctypes.CDLL("libcuda.so.1")
    MOCK.mock_calls.restype = ctypes.c_char_p
    MOCK.mock_last_stream.restype = MOCK.mock_current_context.restype = ctypes.c_void_p
    HANDLER = library().lowbit_xla_step_cuda
    unittest.main()
