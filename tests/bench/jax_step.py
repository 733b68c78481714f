#!/usr/bin/env python3
"""A jitted step of lowbit.jax beside one of optax.adamw, on the same gradients.

    jax_step.py [--threads N] [--rounds N] [--only gpt2|small] [--compile]

GPT-2's 148 tensors (124 M parameters), and 300 of 16 x 16, where the time is all overhead. Parameters and
states are donated by all; gradients are kept, so that `update` has to copy them first, which it has not
in a training step, where they are temporaries. Ratios are of medians of rounds in turn, in one process that is pinned to as
many cores; they are what to compare, not the times. `--compile`: instead, how long a step for 1000
tensors takes to trace and compile. Set LOWBIT_LIBRARY.
"""

import argparse
import functools
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bindings" / "python"))

PARSER = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
PARSER.add_argument("--threads", type=int, default=1)
PARSER.add_argument("--rounds", type=int, default=11)
PARSER.add_argument("--only", choices=("gpt2", "small"))
PARSER.add_argument("--compile", action="store_true")
ARGUMENTS = PARSER.parse_args()
# Before XLA starts its threads.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: ARGUMENTS.threads])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowbit.jax

BLOCK = {"c_attn": (768, 2304), "c_proj": (768, 768), "c_fc": (768, 3072), "c_out": (3072, 768)}


def gpt2():
    shapes = {"wte": (50257, 768), "wpe": (1024, 768), "ln_f.g": (768,), "ln_f.b": (768,)}
    for layer in range(12):
        for name, shape in BLOCK.items():
            shapes[f"h{layer}.{name}.w"], shapes[f"h{layer}.{name}.b"] = shape, shape[1:]
        for name in ("ln_1.g", "ln_1.b", "ln_2.g", "ln_2.b"):
            shapes[f"h{layer}.{name}"] = (768,)
    return shapes


MODELS = {"gpt2": gpt2(), "small": {f"t{i}": (16, 16) for i in range(300)}}


def by_update(optimizer):
    """optax's two passes."""

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return optimizer, step


def by_apply(optimizer):
    """One pass, in place."""
    return optimizer, lambda params, state, grads: optimizer.apply(grads, state, params)


def contestants():
    adamw = functools.partial(lowbit.jax.adamw, 1e-4, threads=ARGUMENTS.threads)
    return {
        "optax.adamw": by_update(optax.adamw(1e-4, weight_decay=0.01)),
        "lowbit adamw32, apply": by_apply(adamw(spec="adamw32")),
        "lowbit adamw4, update": by_update(adamw()),
        "lowbit adamw4, apply": by_apply(adamw()),
        "lowbit adamw4-block, update": by_update(adamw(spec="adamw4-block")),
        "lowbit adamw4-block, apply": by_apply(adamw(spec="adamw4-block")),
    }


def random_tree(shapes, seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape, "f4")) for name, shape in shapes.items()}


def measure(shapes, repeats):
    """Median seconds of a step of each contestant, and bytes of its state."""
    grads = random_tree(shapes, 1)
    runs = {}
    for name, (optimizer, step) in contestants().items():
        params = random_tree(shapes, 0)
        compiled = jax.jit(step, donate_argnums=(0, 1))
        runs[name] = [compiled, params, optimizer.init(params)]
    sizes = {
        name: sum(array.nbytes for array in jax.tree.leaves(run[2])) for name, run in runs.items()
    }
    times = {name: [] for name in runs}
    for i in range(ARGUMENTS.rounds + 2):
        for name, run in runs.items():
            step, params, state = run
            begin = time.perf_counter()
            for _ in range(repeats):
                params, state = step(params, state, grads)
            jax.block_until_ready((params, state))
            run[1:] = params, state
            if i >= 2:
                times[name].append((time.perf_counter() - begin) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}, sizes


def steps():
    print(f"{ARGUMENTS.threads} threads, {ARGUMENTS.rounds} rounds, jax {jax.__version__}")
    for model, shapes in MODELS.items():
        if ARGUMENTS.only not in (None, model):
            continue
        count = sum(int(np.prod(shape)) for shape in shapes.values())
        times, sizes = measure(shapes, 1 if count > 1e7 else 10)
        print(f"\n{model}: {len(shapes)} tensors, {count / 1e6:.1f} M parameters")
        print("| | ms | optax.adamw / it | state B/param |\n|---|---:|---:|---:|")
        for name, seconds in times.items():
            ratio = times["optax.adamw"] / seconds
            print(f"| {name} | {seconds * 1e3:.2f} | {ratio:.2f} | {sizes[name] / count:.2f} |")


def compile_times():
    params = {f"t{i:04}": jnp.zeros((16, 300)) for i in range(1000)}
    print("1000 tensors of 16 x 300\n| | traced s | compiled s |\n|---|---:|---:|")
    for name, (optimizer, step) in contestants().items():
        state = optimizer.init(params)
        begin = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
        traced = time.perf_counter()
        lowered.compile()
        end = time.perf_counter()
        print(f"| {name} | {traced - begin:.1f} | {end - traced:.1f} |", flush=True)


if __name__ == "__main__":
    compile_times() if ARGUMENTS.compile else steps()
