"""Tensors that take their step in one call of the library.

A batch is made once for a list of parameters and used as long as nothing but addresses changes: it
holds the plan, tables of addresses and sizes, and the hyper-parameters as the library reads them,
in the tensors' own memory space.
"""

import ctypes
import functools
import itertools
import json
import math
import operator
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import _c_api, core
from .._library import call

#: torch's dtypes by the library's names. Bit patterns of 16-bit remainders are int16, which every
#: torch can save, move and compare.
DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "u8": torch.uint8,
    "u16": torch.int16,
    "i8": torch.int8,
    "i32": torch.int32,
    "i64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: Tensors that are no subclass of their own. Asked for first, as it is done for every tensor of
#: every step.
PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))

_POINTER = ctypes.POINTER(_c_api.lowbit_buffer_t)

_GRAD_SCALE, _SKIP = 5, 7

# Called for every tensor of every step.
_STEP_OF = operator.itemgetter("step")
_address = torch.Tensor.data_ptr


class Member(NamedTuple):
    """A parameter of a batch.

    name: its own.
    param: as the optimizer has it.
    state: its dict of states.
    group: its parameter group.
    grad_dtype: of its gradient.
    """

    name: str
    param: torch.Tensor
    state: dict
    group: dict
    grad_dtype: torch.dtype


def local(tensor):
    """What of a tensor is in this process: the shard of a DTensor, else the tensor."""
    if type(tensor) in PLAIN or not hasattr(tensor, "to_local"):
        return tensor
    return tensor.to_local()


def float_dtype(dtype, what):
    """The library's name of a parameter's or gradient's dtype."""
    name = _NAMES.get(dtype)
    if name not in ("f32", "bf16", "f16"):
        raise TypeError(f"{what} has dtype {dtype}; it must be float32, bfloat16 or float16")
    return name


@functools.lru_cache(maxsize=256)
def plan_of(spec, tensors, device, threads):
    """A plan; those of models seen lately are kept.

    spec: as text.
    tensors: a tuple of core.Tensor.
    device: a torch.device.
    """
    return core.Plan(json.loads(spec), tensors, context=_context(device, threads))


@functools.lru_cache(maxsize=None)
def _context(device, threads):
    # One for all plans, so that there is one set of threads.
    if device.type == "cuda":
        return core.Context(cuda=device.index)
    return core.Context(threads=threads)


class Batch:
    """Parameters with one device, spec and count of steps.

    members: a list of Member.
    spec: as text.
    hyper: a parameter group -> its lr, beta1, beta2, eps and weight decay: numbers or tensors.
    count: the steps that these parameters have done.
    nonfinite: a key of core.NONFINITE.
    device: where the states are and the step is done.
    shards: None, or the Shards that says where the parameters lie in global tensors.

    States that are not there yet are made, of zeros. All members share one counter of steps, an
    int32 tensor on their device.
    """

    def __init__(self, members, spec, hyper, *, count, nonfinite, threads, device, shards=None):
        self.params = [member.param for member in members]
        self._members = members
        self._options = {
            **{"spec": spec, "hyper": hyper, "count": count, "nonfinite": nonfinite},
            **{"threads": threads, "device": device},
        }
        self._hyper_of = hyper
        self._groups = _distinct(member.group for member in members)
        self._shards = shards
        self.device = device
        tensors = tuple(self._tensor(member) for member in members)
        if shards is not None:
            tensors = shards.placed(tensors)
        self.plan = plan_of(spec, tensors, self.device, threads)
        self.slots = []
        keys = [[] for _ in members]
        for info in self.plan.buffers:
            key = f"{info.state}.{info.part}"
            keys[info.tensor].append((key, info))
        for index, (member, wanted) in enumerate(zip(members, keys)):
            self._prepare(index, member, wanted)
            self.slots += [(member.state, key) for key, _ in wanted]
        self.counter = torch.tensor(count, dtype=torch.int32, device=self.device)
        self._one = torch.ones_like(self.counter)
        for member in members:
            member.state["step"] = self.counter
        self._states = [member.state for member in members]

        self.skipped = torch.zeros(2, dtype=torch.int64, device=self.device)
        self._scratch = torch.zeros(
            self.plan.scratch_bytes // 8, dtype=torch.int64, device=self.device
        )
        self._hyper = torch.zeros((self.plan.group_count, 8), device=self.device)
        self._rows = None
        self._param_table, self._grad_table = _table(len(members)), _table(len(members))
        self._state_table = _table(len(self.slots))
        sizes = [math.prod(tensor.shape) for tensor in tensors]
        self._param_table[:, 1] = _bytes(sizes, (tensor.param_dtype for tensor in tensors))
        self._grad_table[:, 1] = _bytes(sizes, (tensor.grad_dtype for tensor in tensors))
        self._state_table[:, 1] = _bytes(
            [math.prod(info.shape) for info in self.plan.buffers],
            (info.dtype for info in self.plan.buffers),
        )
        self._state_addresses = None
        self._args = _c_api.lowbit_step_args_t.init(
            flags=_c_api.LOWBIT_STEP_COUNTED,
            tensor_count=len(members),
            params=_at(self._param_table),
            grads=_at(self._grad_table),
            buffer_count=len(self.slots),
            state=_at(self._state_table),
            scratch=_c_api.lowbit_buffer_t(self._scratch.data_ptr(), 8 * self._scratch.numel()),
            nonfinite=core.NONFINITE[nonfinite],
            hyper=ctypes.cast(self._hyper.data_ptr(), ctypes.POINTER(ctypes.c_float)),
            step_number=ctypes.cast(self.counter.data_ptr(), ctypes.POINTER(ctypes.c_int32)),
            skipped=ctypes.cast(self.skipped.data_ptr(), ctypes.POINTER(ctypes.c_int64)),
        )

    def _tensor(self, member):
        param = local(member.param)
        return core.Tensor(
            member.name,
            tuple(param.shape),
            float_dtype(param.dtype, f"the parameter {member.name}"),
            float_dtype(member.grad_dtype, f"the gradient of {member.name}"),
            # An f32 parameter has nothing to keep beside it.
            "plain" if param.dtype == torch.float32 else member.group["weights"],
            next(i for i, group in enumerate(self._groups) if group is member.group),
        )

    def _prepare(self, index, member, wanted):
        """Makes the states of a new parameter, or looks whether those that it has will do."""
        state = member.state
        # A state that is taken over has nothing but its count.
        fresh = not state.keys() - {"step"}
        for key, info in wanted:
            if fresh:
                value = torch.zeros(info.shape, dtype=DTYPES[info.dtype], device=self.device)
                if self._shards is not None:
                    value = self._shards.state(index, key, self.plan.tensors[index], value)
                state[key] = value
            elif key not in state:
                raise KeyError(
                    f"the state of {member.name} has {sorted(state)} and not {key}: it is that of"
                    " another spec or another optimizer"
                )
            else:
                _check_state(local(state[key]), info, self.device, f"{key} of {member.name}")

    @property
    def sharded(self):
        return self._shards is not None

    def is_current(self, state):
        """Whether the optimizer's states are still those that the batch was made for."""
        found = map(state.get, self.params)
        counters = map(_STEP_OF, self._states)
        return all(map(operator.is_, found, self._states)) and all(
            map(operator.is_, counters, itertools.repeat(self.counter))
        )

    def step(self, params, grads, grad_scale=None, found_inf=None):
        """One step.

        params, grads: tensors of this process, contiguous and as they were when the batch was made
            in all but their addresses.

        grad_scale: None, or a tensor: gradients are divided by it.
        found_inf: None, or a tensor: nothing changes if it is not 0.
        """
        self._param_table[:, 0] = list(map(_address, params))
        self._grad_table[:, 0] = list(map(_address, grads))
        self._fill_states()
        self._fill_hyper(grad_scale, found_inf)
        # The library takes the number of this step and, if the step is not skipped, adds 1.
        self.counter.add_(self._one)
        try:
            self._run()
        finally:
            self.counter.sub_(self._one)

    def _run(self):
        args, handle = ctypes.byref(self._args), self.plan.handle
        stream = _stream(self.device)
        if self._shards is None:
            return call("lowbit_step", handle, args, stream)
        for index, stage in enumerate(self.plan.stages):
            call("lowbit_step_stats", handle, args, index, stream)
            statistics = self._scratch.view(DTYPES[stage.dtype])
            begin = stage.offset // statistics.element_size()
            self._shards.reduce(statistics[begin : begin + stage.count], stage.reduce)
        return call("lowbit_step_apply", handle, args, stream)

    def _fill_states(self):
        """The addresses of the states. Only those that moved are looked at again."""
        tensors = [state[key] for state, key in self.slots]
        if self._shards is not None:
            tensors = [local(tensor) for tensor in tensors]
        addresses = list(map(_address, tensors))
        if addresses != self._state_addresses:
            for tensor, info in zip(tensors, self.plan.buffers):
                name = self.plan.tensors[info.tensor].name
                what = f"{info.state}.{info.part} of {name}"
                _check_state(tensor, info, self.device, what)
            self._state_table[:, 0] = addresses
            self._state_addresses = addresses

    def _fill_hyper(self, grad_scale, found_inf):
        """The rows of hyper-parameters. Numbers are copied only if they have changed; tensors on
        the batch's own device are never read by the host."""
        columns = []
        rows = []
        for index, group in enumerate(self._groups):
            row = [*self._hyper_of(group), 1.0, 1.0, 0.0]
            if grad_scale is not None:
                row[_GRAD_SCALE] = grad_scale
            if found_inf is not None:
                row[_SKIP] = found_inf
            for column, value in enumerate(row):
                if not isinstance(value, torch.Tensor):
                    continue
                if "cpu" in (value.device.type, self.device.type):
                    row[column] = 1.0 / float(value) if column == _GRAD_SCALE else float(value)
                else:
                    row[column] = 0.0
                    columns.append((index, column, value))
            rows.append(row)
        if rows != self._rows:
            self._rows = rows
            if self.device.type == "cpu":
                self._hyper.numpy()[:] = rows
            else:
                if torch.cuda.is_current_stream_capturing():
                    raise RuntimeError(
                        "a hyper-parameter has changed since the step before the capture, and a"
                        " graph would keep its old value: make it a tensor on the device"
                    )
                # The caching allocator keeps pinned memory until the copy is done.
                values = torch.tensor(rows, pin_memory=True)
                self._hyper.copy_(values, non_blocking=True)
        for index, column, value in columns:
            value = value.reciprocal() if column == _GRAD_SCALE else value
            self._hyper[index, column].copy_(value.reshape(()), non_blocking=True)

    def compress(self, name, values):
        """Quantizes tensors of the parameters' shapes into the state `name`.

        values: an iterable. DTensors are gathered, one at a time if the parameters are, too.
        """
        if self._shards is not None:
            for member, value in zip(self._members, values):
                whole = self._whole(member)
                whole.compress(name, [value])
                for state, key in whole.slots:
                    if key.startswith(f"{name}."):
                        self._shards.scatter(state[key], member.state[key])
            return
        values = [self._float32(value) for value in values]
        table = _value_table(values)
        arguments = (_at(table), len(values), *self.state_table())
        call("lowbit_compress", self.plan.handle, name.encode(), *arguments)

    def decompress(self, name):
        """The state `name` as tensors of the parameters' shapes: float32, and DTensors where the
        parameters are. An iterable, of which shards are gathered one at a time."""
        if self._shards is not None:
            return map(functools.partial(self._decompress_shard, name), self._members)
        values = [
            torch.empty(tensor.shape, dtype=torch.float32, device=self.device)
            for tensor in self.plan.tensors
        ]
        table = _value_table(values)
        *states, stream = self.state_table()
        arguments = (*states, _at(table), len(values), stream)
        call("lowbit_decompress", self.plan.handle, name.encode(), *arguments)
        return values

    def _decompress_shard(self, name, member):
        whole = self._whole(member)
        for state, key in whole.slots:
            if key.startswith(f"{name}."):
                state[key].copy_(member.state[key].full_tensor())
        (values,) = whole.decompress(name)
        target = torch.zeros_like(member.param, dtype=torch.float32, requires_grad=False)
        self._shards.scatter(values, target)
        return target

    def _whole(self, member):
        """A batch of a sharded parameter alone, in one piece and with states of its own: a state's
        codes depend on the statistics of the whole tensor."""
        param = torch.empty(member.param.shape, dtype=member.param.dtype, device="meta")
        return Batch([member._replace(param=param, state={})], **self._options)

    def _float32(self, tensor):
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        return whole.to(self.device, torch.float32).contiguous()

    def state_table(self):
        """Addresses and sizes of all states, in the plan's order, and how many there are."""
        self._fill_states()
        return _at(self._state_table), len(self.slots), _stream(self.device)


def _table(length):
    """An array of lowbit_buffer_t, as rows of an address and a size."""
    return np.zeros((length, 2), np.int64)


@functools.lru_cache(maxsize=None)
def _itemsize(dtype):
    return torch.empty(0, dtype=dtype).element_size()


def _at(table):
    return table.ctypes.data_as(_POINTER)


def _value_table(tensors):
    table = _table(len(tensors))
    table[:, 0] = [tensor.data_ptr() for tensor in tensors]
    table[:, 1] = [tensor.numel() * tensor.element_size() for tensor in tensors]
    return table


def _bytes(sizes, dtypes):
    """Bytes of so many elements of each dtype, by the library's names."""
    return [size * _itemsize(DTYPES[dtype]) for size, dtype in zip(sizes, dtypes)]


def _check_state(tensor, info, device, what):
    found = (tuple(tensor.shape), tensor.dtype, tensor.device)
    wanted = (info.shape, DTYPES[info.dtype], device)
    if found != wanted:
        raise ValueError(
            f"{what} has (shape, dtype, device) {found}, its parameter and spec want {wanted}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{what} is not contiguous")


def _stream(device) -> Any:
    if device.type == "cuda":
        return ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
    return None


def _distinct(groups):
    """The groups in the order of their first appearance, by identity."""
    return list({id(group): group for group in groups}.values())
