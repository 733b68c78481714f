"""E6: the state of LLaMA-7B's AdamW, allocated and stepped on this machine.

The states of all 291 tensors exist at once; parameters and gradients are those of one tensor at a
time, in buffers that all share, as a trainer has them that steps each tensor in the backward pass.
The measure is the growth of the process's resident memory.
"""

import time

import numpy as np

import lowbit
import training

STEPS = 2
ARMS = ("adamw4", "adamw4-block", "factor4")


def llama_7b():
    """(name, shape) of every tensor: 6,738,415,616 parameters."""
    width, hidden, vocabulary = 4096, 11008, 32000
    tensors = [("model.embed_tokens.weight", (vocabulary, width))]
    for layer in range(32):
        at = f"model.layers.{layer}."
        tensors += [(f"{at}self_attn.{name}_proj.weight", (width, width)) for name in "qkvo"]
        tensors += [(f"{at}mlp.{name}_proj.weight", (hidden, width)) for name in ("gate", "up")]
        tensors += [(f"{at}mlp.down_proj.weight", (width, hidden))]
        tensors += [
            (f"{at}{name}_layernorm.weight", (width,)) for name in ("input", "post_attention")
        ]
    return [*tensors, ("model.norm.weight", (width,)), ("lm_head.weight", (vocabulary, width))]


def _kibibytes(field, path="/proc/self/status"):
    with open(path, encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def allocate_and_step(arm):
    """Allocates all states and steps each tensor STEPS times."""
    tensors = [lowbit.core.Tensor(name, shape) for name, shape in llama_7b()]
    counted = lowbit.Plan(arm, tensors).state_bytes
    available = 1024 * _kibibytes("MemAvailable", "/proc/meminfo")
    buffers = 8 * max(np.prod(tensor.shape) for tensor in tensors)
    if counted + buffers > 0.95 * available:
        raise MemoryError(f"{arm} takes {counted + buffers:,} bytes; {available:,} are available")
    largest = int(max(np.prod(tensor.shape) for tensor in tensors))
    params = np.full(largest, 0.01, np.float32)
    grads = np.random.default_rng(0).standard_normal(largest, np.float32)
    plans = {
        shape: lowbit.Plan(arm, [lowbit.core.Tensor("w", shape)], threads=0)
        for shape in dict.fromkeys(tensor.shape for tensor in tensors)
    }
    before = _kibibytes("VmRSS")
    states = [plans[tensor.shape].zeros() for tensor in tensors]
    start = time.time()
    for step in range(1, STEPS + 1):
        for tensor, state in zip(tensors, states):
            size = int(np.prod(tensor.shape))
            plans[tensor.shape].step(
                [params[:size].reshape(tensor.shape)],
                [grads[:size].reshape(tensor.shape)],
                state,
                step=step,
                lr=1e-3,
                weight_decay=0.0,
            )
    seconds = (time.time() - start) / STEPS
    return {
        "counted_bytes": counted,
        "measured_bytes": 1024 * (_kibibytes("VmRSS") - before),
        "adamw32_bytes": lowbit.Plan("adamw32", tensors).state_bytes,
        "available_bytes": available,
        "tensors": len(tensors),
        "steps": STEPS,
        "step_seconds": seconds,
    }


def measure(store, part, parts):
    """All arms, one after the other; about 8 GB are needed."""
    for arm in ARMS[part::parts]:
        key = {
            "arm": arm,
            "spec": training.seeded(arm, 0),
            "seed": 0,
            "settings": {"steps": STEPS},
            "data": "random",
        }
        store.run(key, lambda arm=arm: allocate_and_step(arm))
