"""The optimizers that are compared, each behind the same three methods.

A contestant is made of a list of `torch.nn.Parameter` with their `grad` set, and has

    step()         one step, finished when it returns
    params()       the parameters as they are now, a list of tensors
    state_bytes()  of all its states

All but optax step the given parameters in place, so that parameters and gradients are shared.
"""

from typing import Callable, NamedTuple

import torch

HYPER = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


class Lowbit:
    """The core of the Python binding, on the tensors' memory."""

    def __init__(self, params, spec, weights="plain"):
        from lowbit import Plan, Tensor

        dtype = {torch.float32: "f32", torch.bfloat16: "bf16"}[params[0].dtype]
        tensors = [
            Tensor(str(i), tuple(p.shape), dtype, dtype, weights) for i, p in enumerate(params)
        ]
        self._params = params
        self._plan = Plan(spec, tensors, threads=torch.get_num_threads())
        self._arrays = [_numpy(p.detach()) for p in params]
        self._grads = [_numpy(p.grad) for p in params]
        # By torch's allocator like all the others: numpy's asks for huge pages.
        self._state = [
            torch.zeros(info.shape, dtype=_torch_dtype(info.numpy_dtype)).numpy()
            for info in self._plan.buffers
        ]
        self._step = 0

    def step(self):
        self._step += 1
        beta1, beta2 = HYPER["betas"]
        self._plan.step(
            self._arrays,
            self._grads,
            self._state,
            step=self._step,
            lr=HYPER["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=HYPER["eps"],
            weight_decay=HYPER["weight_decay"],
        )

    def params(self):
        return self._params

    def state_bytes(self):
        return self._plan.state_bytes


class Torch:
    """Anything with the interface of `torch.optim`."""

    def __init__(self, params, optimizer, **options):
        self._params = params
        self._optimizer = optimizer(params, **HYPER, **options)

    def step(self):
        self._optimizer.step()

    def params(self):
        return self._params

    def state_bytes(self):
        states = self._optimizer.state.values()
        found = {
            tensor.data_ptr(): tensor.nbytes
            for state in states
            for value in state.values()
            if isinstance(value, torch.Tensor)
            for tensor in _plain(value)
        }
        return sum(found.values())


class Optax:
    """`optax.adamw` under `jax.jit`, parameters and states donated. Gradients are shared."""

    def __init__(self, params):
        import jax
        import optax

        beta1, beta2 = HYPER["betas"]
        transform = optax.adamw(
            HYPER["lr"], beta1, beta2, HYPER["eps"], weight_decay=HYPER["weight_decay"]
        )

        def step(params, state, grads):
            updates, state = transform.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._jax = jax
        self._compiled = jax.jit(step, donate_argnums=(0, 1))
        self._grads = [jax.numpy.from_dlpack(p.grad) for p in params]
        self._params = [
            jax.numpy.array(jax.numpy.from_dlpack(p.detach()), copy=True) for p in params
        ]
        self._state = transform.init(self._params)

    def step(self):
        self._params, self._state = self._compiled(self._params, self._state, self._grads)
        self._jax.block_until_ready((self._params, self._state))

    def params(self):
        return [torch.from_dlpack(p) for p in self._params]

    def state_bytes(self):
        return sum(leaf.nbytes for leaf in self._jax.tree.leaves(self._state))


def _fused(params):
    return Torch(params, torch.optim.AdamW, fused=True)


def _foreach(params):
    return Torch(params, torch.optim.AdamW, foreach=True)


def _torchao(name):
    def make(params):
        import torchao.optim

        return Torch(params, getattr(torchao.optim, name))

    return make


def _bitsandbytes(params):
    import bitsandbytes

    return Torch(params, bitsandbytes.optim.AdamW8bit)


def _deepspeed(params):
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return Torch(params, DeepSpeedCPUAdam, adamw_mode=True)


def _lowbit(spec, weights="plain"):
    return lambda params: Lowbit(params, spec, weights)


#: `adamw4-block` with states rounded at random, as the spec's JSON.
_STOCHASTIC = {
    "optimizer": "adamw",
    "m": {"bits": 4, "normalization": "block", "mapping": "de", "rounding": "stochastic"},
    "v": {"bits": 4, "normalization": "block", "mapping": "linear", "rounding": "stochastic"},
}

# How far a contestant's parameters may be from an f64 AdamW's after the steps of `check`, as a
# part of the distance that they went. One that does nothing is at 1.
_F32, _8BIT, _4BIT = 1e-4, 0.02, 0.25


class Entry(NamedTuple):
    """One contestant.

    peer: the package it is of.
    make: parameters -> contestant.
    tolerance: of `check`.
    dtype: of parameters and gradients.
    slow: takes part in a few rounds only.
    """

    peer: str
    make: Callable
    tolerance: float
    dtype: torch.dtype = torch.float32
    slow: bool = False


#: name -> Entry, in the order of the tables
ENTRIES = {
    "lowbit adamw4-block": Entry("lowbit", _lowbit("adamw4-block"), _4BIT),
    "lowbit adamw4": Entry("lowbit", _lowbit("adamw4"), _4BIT),
    "lowbit adamw8": Entry("lowbit", _lowbit("adamw8"), _8BIT),
    "lowbit adamw32": Entry("lowbit", _lowbit("adamw32"), _F32),
    "lowbit adamw4-robust": Entry("lowbit", _lowbit("adamw4-robust"), _4BIT),
    "lowbit adamw4-block, states stochastic": Entry("lowbit", _lowbit(_STOCHASTIC), _4BIT),
    "lowbit adamw4-block, bf16": Entry("lowbit", _lowbit("adamw4-block"), _4BIT, torch.bfloat16),
    "lowbit adamw4-block, bf16 stochastic": Entry(
        "lowbit", _lowbit("adamw4-block", "stochastic"), _4BIT, torch.bfloat16
    ),
    "lowbit adamw4, bf16": Entry("lowbit", _lowbit("adamw4"), _4BIT, torch.bfloat16),
    "lowbit adamw4, bf16 stochastic": Entry(
        "lowbit", _lowbit("adamw4", "stochastic"), _4BIT, torch.bfloat16
    ),
    "torch fused": Entry("torch", _fused, _F32),
    "torch foreach": Entry("torch", _foreach, _F32),
    "DeepSpeed CPUAdam": Entry("deepspeed", _deepspeed, _F32),
    "optax jit": Entry("optax", Optax, _F32),
    "torchao AdamW4bit": Entry("torchao", _torchao("AdamW4bit"), _4BIT, slow=True),
    "torchao AdamW8bit": Entry("torchao", _torchao("AdamW8bit"), _8BIT, slow=True),
    "bitsandbytes AdamW8bit": Entry("bitsandbytes", _bitsandbytes, _8BIT, slow=True),
}


def check(entry):
    """Steps a small matrix with gradients that change, and compares with torch's AdamW in f64.

    Returns the error: the distance to where that one is, as a part of the way it went.
    """
    draw = torch.Generator().manual_seed(0)
    start = (torch.randn(640, 640, generator=draw) / 10).to(entry.dtype)
    param = torch.nn.Parameter(start.clone())
    param.grad = torch.zeros_like(param)
    exact = torch.nn.Parameter(start.double())
    reference = torch.optim.AdamW([exact], foreach=False, **HYPER)
    contestant = entry.make([param])
    for _ in range(10):
        # Like a real one, the gradient has a part that stays.
        grad = (torch.randn(640, 640, generator=draw) + start.float().sign()) / 100
        param.grad.copy_(grad)
        exact.grad = param.grad.double()
        contestant.step()
        reference.step()
    (end,) = contestant.params()
    way = torch.linalg.vector_norm(exact.detach() - start.double())
    return float(torch.linalg.vector_norm(end.detach().double() - exact.detach()) / way)


def _numpy(tensor):
    """A view of the memory; numpy has no bf16, and the library asks for addresses only."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _torch_dtype(dtype):
    return getattr(torch, dtype.name)


def _plain(tensor):
    """The tensors that a subclass such as torchao's is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in _plain(getattr(tensor, name))]
    return [tensor]
