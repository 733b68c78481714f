"""Specs and plans, and steps on arrays: those of numpy, or the tensors of any library that hands
out the CPU's memory by DLPack, such as detached ones of torch. No JAX here."""

import ctypes
import json
import os
from typing import NamedTuple

import numpy as np

from . import _c_api, _dlpack
from ._library import call, callback, create, text_of

_DTYPES = {
    "f32": _c_api.LOWBIT_DTYPE_F32,
    "bf16": _c_api.LOWBIT_DTYPE_BF16,
    "f16": _c_api.LOWBIT_DTYPE_F16,
    "u8": _c_api.LOWBIT_DTYPE_U8,
    "i32": _c_api.LOWBIT_DTYPE_I32,
    "i64": _c_api.LOWBIT_DTYPE_I64,
    "u16": _c_api.LOWBIT_DTYPE_U16,
    "i8": _c_api.LOWBIT_DTYPE_I8,
}
_DTYPE_NAMES = {number: name for name, number in _DTYPES.items()}
_NUMPY = {
    "f32": np.float32,
    "u8": np.uint8,
    "i32": np.int32,
    "i64": np.int64,
    "u16": np.uint16,
    "i8": np.int8,
}

#: What is kept beside a 16-bit parameter; `lowbit.h` says what each means.
WEIGHTS = {
    "plain": _c_api.LOWBIT_WEIGHTS_PLAIN,
    "stochastic": _c_api.LOWBIT_WEIGHTS_STOCHASTIC,
    "master": _c_api.LOWBIT_WEIGHTS_MASTER,
    "remainder16": _c_api.LOWBIT_WEIGHTS_REMAINDER16,
    "correction8": _c_api.LOWBIT_WEIGHTS_CORRECTION8,
}

_REDUCE_NAMES = {_c_api.LOWBIT_REDUCE_MAX: "max", _c_api.LOWBIT_REDUCE_SUM: "sum"}

#: The hyper-parameters of a step, in the order of `lowbit_step_args_t.hyper`.
_HYPER = (
    "lr",
    "beta1",
    "beta2",
    "eps",
    "weight_decay",
    "grad_scale",
    "clip_factor",
    "skip",
)

#: What to do about NaN and infinity in gradients; `lowbit.h` says what each means.
NONFINITE = {
    "default": _c_api.LOWBIT_NONFINITE_DEFAULT,
    "skip_block": _c_api.LOWBIT_NONFINITE_SKIP_BLOCK,
    "skip_tensor": _c_api.LOWBIT_NONFINITE_SKIP_TENSOR,
    "skip_step": _c_api.LOWBIT_NONFINITE_SKIP_STEP,
    "propagate": _c_api.LOWBIT_NONFINITE_PROPAGATE,
}

#: Which CPU code does the work; all give the same bits.
VARIANTS = {
    "auto": _c_api.LOWBIT_CPU_VARIANT_AUTO,
    "reference": _c_api.LOWBIT_CPU_VARIANT_REFERENCE,
    "portable": _c_api.LOWBIT_CPU_VARIANT_PORTABLE,
    "avx2": _c_api.LOWBIT_CPU_VARIANT_AVX2,
    "avx512": _c_api.LOWBIT_CPU_VARIANT_AVX512,
}


class Spec:
    """Which optimizer, with which quantizer for each of its states.

    spec: the name of a preset ("adamw4", "adamw4-robust", "adamw4-block", "lion4", ...; a wrong name is
        answered with all of them), or the JSON form as a dict, or another Spec.

    json: the JSON form as text; equal specs have equal texts.

    Raises Error naming the key that is wrong.
    """

    def __init__(self, spec):
        if isinstance(spec, Spec):
            spec = json.loads(spec.json)
        if isinstance(spec, str):
            arguments = ("lowbit_spec_create_preset", spec.encode())
        else:
            arguments = ("lowbit_spec_create_json", json.dumps(spec).encode())
        self.handle = create(self, "spec", *arguments)
        self.json = text_of("lowbit_spec_json", self.handle)

    def __eq__(self, other):
        return isinstance(other, Spec) and self.json == other.json

    def __hash__(self):
        return hash(self.json)

    def __repr__(self):
        return f"Spec({self.json})"


class Context:
    """One backend instance, which plans may share.

    threads: of the CPU, the caller's among them; 0: as many as the process may use.
    variant: a key of VARIANTS.
    cuda: the ordinal of a CUDA device, instead of the CPU.

    Raises Error if it cannot be used, with the reason.
    """

    def __init__(self, *, threads=1, variant="auto", cuda=None):
        if cuda is None:
            info = _c_api.lowbit_cpu_info_t.init(threads=threads, variant=VARIANTS[variant])
            name = "lowbit_context_create_cpu"
        else:
            info = _c_api.lowbit_cuda_info_t.init(device=cuda)
            name = "lowbit_context_create_cuda"
        self.handle = create(self, "context", name, ctypes.byref(info))


class Tensor(NamedTuple):
    """A tensor of a plan.

    name: unique in the plan; matched by the spec's overrides and written to checkpoints.
    shape: extents, outermost first.
    param_dtype, grad_dtype: "f32", "bf16" or "f16".
    weights: a key of WEIGHTS: what is kept beside a 16-bit parameter.
    group: which of the step's hyper-parameters are this tensor's, from 0.
    global_shape, offset: of a shard: the extents of the whole tensor, and the index of its first
        element there. None: the tensor is whole; the origin.
    """

    name: str
    shape: tuple
    param_dtype: str = "f32"
    grad_dtype: str = "f32"
    weights: str = "plain"
    group: int = 0
    global_shape: tuple | None = None
    offset: tuple | None = None


class BufferInfo(NamedTuple):
    """One state buffer of a plan.

    tensor: index of its tensor.
    state: "m", "v", "vmax", "x", or "weights" for what is kept beside the parameter.
    part: "value" (f32 states), "codes" (packed), "scales", "axis0", "rows", "master", ...
    dtype: "f32", "u8", "u16" or "i8".
    shape: extents, outermost first.
    """

    tensor: int
    state: str
    part: str
    dtype: str
    shape: tuple

    @property
    def numpy_dtype(self):
        return np.dtype(_NUMPY[self.dtype])


class StageInfo(NamedTuple):
    """Statistics that one collecting stage of a step fills in, and shards combine.

    dtype: "i32" or "i64".
    reduce: "max" or "sum".
    offset: of the first, in bytes of the scratch.
    count: how many, the same for all shards.
    """

    dtype: str
    reduce: str
    offset: int
    count: int


class Plan:
    """What states a list of tensors gets, and what moves them. Immutable.

    spec: a Spec, or what makes one.
    tensors: a list of Tensor.
    threads, variant: of a Context that is the plan's own.
    context: a Context, instead of these.

    buffers: a tuple of BufferInfo, tensor by tensor, state by state, part by part. Lists of state
        arrays are in this order. Zeros are the initial state.
    state_bytes: exact bytes of all state buffers.
    scratch_bytes: those of a step's scratch, a multiple of 8.
    group_count: how many groups of hyper-parameters a step takes.
    stages: a tuple of StageInfo: what shards combine in a step, one after the other.

    Raises Error naming tensor and field.
    """

    def __init__(self, spec, tensors, *, threads=1, variant="auto", context=None):
        self.spec = spec if isinstance(spec, Spec) else Spec(spec)
        self.tensors = tuple(tensors)
        context = Context(threads=threads, variant=variant) if context is None else context
        extents = [_extents(tensor) for tensor in self.tensors]
        infos = [
            _c_api.lowbit_tensor_info_t.init(
                name=tensor.name.encode(),
                ndim=len(tensor.shape),
                param_dtype=_DTYPES[tensor.param_dtype],
                grad_dtype=_DTYPES[tensor.grad_dtype],
                weights=WEIGHTS[tensor.weights],
                group=tensor.group,
                **place,
            )
            for tensor, place in zip(self.tensors, extents)
        ]
        array = (_c_api.lowbit_tensor_info_t * len(infos))(*infos)
        self.handle = create(
            self, "plan", "lowbit_plan_create", context.handle, self.spec.handle, array, len(array)
        )
        sizes = _c_api.lowbit_plan_info_t.init()
        call("lowbit_plan_info", self.handle, ctypes.byref(sizes))
        self.state_bytes = sizes.state_bytes
        self.scratch_bytes = sizes.scratch_bytes
        self.group_count = sizes.group_count
        self.buffers = tuple(self._buffer(i) for i in range(sizes.buffer_count))
        self.stages = tuple(self._stage(i) for i in range(sizes.stage_count))

    def _buffer(self, index):
        info = _c_api.lowbit_buffer_info_t.init()
        call("lowbit_plan_buffer", self.handle, index, ctypes.byref(info))
        return BufferInfo(
            info.tensor,
            info.state.decode(),
            info.part.decode(),
            _DTYPE_NAMES[info.dtype],
            tuple(info.shape[: info.ndim]),
        )

    def _stage(self, index):
        info = _c_api.lowbit_stage_info_t.init()
        call("lowbit_plan_stage", self.handle, index, ctypes.byref(info))
        dtype, reduce = _DTYPE_NAMES[info.dtype], _REDUCE_NAMES[info.reduce]
        return StageInfo(dtype, reduce, info.offset, info.count)

    def report(self):
        """A table that says, per tensor, what it got and why, and the bytes."""
        return text_of("lowbit_plan_report", self.handle)

    def zeros(self):
        """The initial state: a list of numpy arrays."""
        return [np.zeros(info.shape, info.numpy_dtype) for info in self.buffers]

    def scratch(self):
        """Memory for the statistics of one step at a time."""
        return np.zeros(self.scratch_bytes // 8, np.int64)

    def statistics(self, scratch, stage):
        """The part of a scratch that shards combine after `collect` of this stage: a view of it."""
        info = self.stages[stage]
        return np.frombuffer(scratch, _NUMPY[info.dtype], info.count, info.offset)

    def step(self, params, grads, state, **arguments):
        """One step, in place, on lists of C-contiguous arrays.

        updates: arrays that receive the updates; the parameters then stay.
        step: the number of this step, from 1.
        nonfinite: a key of NONFINITE.
        lr, beta1, beta2, eps, weight_decay, grad_scale, clip_factor, skip: numbers.
        groups: for each group of the plan a dict of these numbers, over those given for all.

        Returns how many blocks and tensors were skipped because of non-finite gradients.
        """
        return self._step(("lowbit_step",), self.scratch(), params, grads, state, **arguments)

    def collect(self, stage, scratch, params, grads, state, **arguments):
        """The statistics of one stage of a step, into the scratch. Arguments are those of `step`.

        A trainer with shards calls it for each of `stages` in turn, combines
        `statistics(scratch, stage)` over the shards after each, and ends with `apply`.
        """
        self._step(("lowbit_step_stats", stage), scratch, params, grads, state, **arguments)

    def apply(self, scratch, params, grads, state, **arguments):
        """The end of a step whose stages have been collected. As `step` otherwise."""
        return self._step(("lowbit_step_apply",), scratch, params, grads, state, **arguments)

    def _step(
        self,
        entry,
        scratch,
        params,
        grads,
        state,
        *,
        step=1,
        updates=None,
        nonfinite="default",
        groups=None,
        **hyper,
    ):
        """entry: the function, and what it takes between the arguments and the stream."""
        skipped = (ctypes.c_int64 * 2)()
        arguments = _c_api.lowbit_step_args_t.init(
            tensor_count=len(params),
            params=_buffers(params, written=updates is None),
            grads=_buffers(grads),
            updates=None if updates is None else _buffers(updates, written=True),
            buffer_count=len(state),
            state=_buffers(state, written=True),
            scratch=_buffers([scratch], written=True)[0],
            step=step,
            nonfinite=NONFINITE[nonfinite],
            skipped=skipped,
            **hyper,
        )
        if groups is not None:
            # The library sees an address and not how many numbers there are.
            if len(groups) != self.group_count:
                raise ValueError(f"{len(groups)} groups are given; the plan has {self.group_count}")
            common = {name: getattr(arguments, name) for name in _HYPER}
            values = [{**common, **group} for group in groups]
            rows = [[row.pop(name) for name in _HYPER] for row in values]
            if any(values):
                raise TypeError(f"groups have {sorted(set().union(*values))}, which no step has")
            array = np.array(rows, np.float32)
            arguments.hyper = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            arguments.step_number = ctypes.pointer(ctypes.c_int32(step))
        function, *between = entry
        call(function, self.handle, ctypes.byref(arguments), *between, None)
        return tuple(skipped)

    def compress(self, name, values, state):
        """Quantizes values, float32 arrays of the tensors' shapes, into the state `name` ("m", "v"
        or "x"): to import it from 32 bits, or for an optimizer of the trainer's own."""
        values, buffers = _buffers(values), _buffers(state, written=True)
        arguments = (values, len(values), buffers, len(buffers), None)
        call("lowbit_compress", self.handle, name.encode(), *arguments)

    def decompress(self, name, state):
        """The state `name` as a list of float32 arrays of the tensors' shapes."""
        arrays = [np.empty(tensor.shape, np.float32) for tensor in self.tensors]
        values, buffers = _buffers(arrays, written=True), _buffers(state)
        arguments = (buffers, len(buffers), values, len(values), None)
        call("lowbit_decompress", self.handle, name.encode(), *arguments)
        return arrays

    def save(self, path, state, step, *, keep=0, progress=None):
        """Writes the state arrays after `step` steps to a checkpoint file, whole or not at all.

        keep: above 0 the file's name has "{step}" in it, which is replaced, and of the files with such
            names the newest `keep` stay.
        progress: called with the bytes that are done and how many there are.
        """
        buffers = _buffers(state)
        arguments = _c_api.lowbit_save_args_t.init()
        arguments.buffer_count, arguments.state = len(buffers), buffers
        arguments.step, arguments.path, arguments.keep = step, os.fsencode(path), keep
        with callback(progress) as arguments.progress:
            call("lowbit_checkpoint_write", self.handle, ctypes.byref(arguments), None)

    def load(self, path, state, *, subset=False, progress=None):
        """Reads a checkpoint file, or an index of several, into the state arrays; returns the number of
        steps done. The shards that were saved need not be those of this plan.

        subset: the checkpoint may have tensors that the plan lacks.
        progress: called with the bytes that are done and how many there are.

        Raises Error, with the state untouched, unless all that it is read from is sound and of the same
        spec and tensors.
        """
        info = _c_api.lowbit_checkpoint_info_t.init()
        buffers = _buffers(state, written=True)
        arguments = _c_api.lowbit_load_args_t.init()
        arguments.flags = _c_api.LOWBIT_LOAD_SUBSET if subset else 0
        arguments.buffer_count, arguments.state = len(buffers), buffers
        arguments.path = os.fsencode(path)
        with callback(progress) as arguments.progress:
            call(
                "lowbit_checkpoint_read",
                self.handle,
                ctypes.byref(arguments),
                None,
                ctypes.byref(info),
            )
        return info.step

    def reshard(self, source, path, *, progress=None):
        """Writes the checkpoint file of this plan's tensors, whole or any shards of them, from the
        checkpoint `source` of any mesh."""
        source, path = os.fsencode(source), os.fsencode(path)
        with callback(progress) as report:
            call("lowbit_checkpoint_reshard", self.handle, source, path, report, None)


def _extents(tensor):
    """The arrays of a tensor's descriptor."""
    given = {"shape": tensor.shape, "global_shape": tensor.global_shape, "offset": tensor.offset}
    return {
        name: (ctypes.c_int64 * len(values))(*values)
        for name, values in given.items()
        if values is not None
    }


def _buffers(arrays, written=False):
    """Addresses and sizes, as an array that keeps alive what they are of."""
    buffers = (_c_api.lowbit_buffer_t * len(arrays))()
    owners = list(arrays)
    for i, (buffer, array) in enumerate(zip(buffers, arrays)):
        what = f"array {i}"
        if isinstance(array, np.ndarray):
            if not array.flags.c_contiguous:
                raise ValueError(f"{what} is not C-contiguous")
            buffer.data, buffer.bytes = array.ctypes.data, array.nbytes
            writeable = array.flags.writeable
        else:
            buffer.data, buffer.bytes, writeable, owner = _dlpack.memory(array, what)
            owners.append(owner)
        if written and not writeable:
            raise ValueError(f"{what} is read-only")
    # A caller may have let go of its arrays with the call's arguments.
    buffers.owners = owners
    return buffers
