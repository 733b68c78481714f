#!/usr/bin/env python3
"""A small GPT on real text: optax.adamw, and lowbit.jax.adamw in its place.

Model, text and batches are those of the experiments (../experiments): 1.13 M parameters, the sources of
Python's documentation in 4096 tokens. All optimizers start from the same weights and see the same batches.

    cargo xtask example jax [--steps 400]        minutes on two cores; sets up what it needs

Prints a table and leaves loss.svg in the folder --out. Memory is what JAX says: the arrays that `init`
leaves alive, and the temporaries of the compiled step (parameters and states are donated to it).
"""

import argparse
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "experiments"))

import gpt
import jax
import language_model
import matplotlib
import numpy as np
import optax

import lowbit.jax

matplotlib.use("svg")
import matplotlib.pyplot as plt

#: What takes whose place.
OPTIMIZERS = {
    "optax.adamw": optax.adamw,
    "lowbit.jax.adamw": lowbit.jax.adamw,
    "lowbit.jax.adamw, in blocks": functools.partial(lowbit.jax.adamw, spec="adamw4-block"),
}
#: Losses of so many steps are one point of a curve.
WINDOW = 20


def optimizer_of(adamw, steps):
    """The same call for all."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps, 2e-4)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        adamw(schedule, b1=0.9, b2=0.999, weight_decay=0.1, mask=gpt.decays),
    )


def live_bytes():
    return sum(array.nbytes for array in jax.live_arrays())


def train(task, adamw, steps):
    """Returns a row of the table as a dict, with the losses of all steps."""
    optimizer = optimizer_of(adamw, steps)
    params = jax.tree.map(jax.numpy.copy, task.params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, batch):
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    before = live_bytes()
    state = jax.block_until_ready(optimizer.init(params))
    state_bytes = live_bytes() - before

    compiled = train_step.lower(params, state, task.batch(0)).compile()
    losses = []
    for step in range(steps):
        params, state, loss = compiled(params, state, task.batch(step))
        losses.append(loss)
    return {
        "losses": np.asarray(losses),
        "state_bytes": state_bytes,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        **task.score(params),
    }


def plot(results, path):
    """Training losses, means of WINDOW steps."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, result in results.items():
        losses = result["losses"]
        means = losses[: len(losses) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(axis=1)
        bytes_each = result["state_bytes"] / result["parameters"]
        steps = WINDOW * (1 + np.arange(len(means)))
        axes.plot(steps, means, lw=1.2, label=f"{name}: {bytes_each:.2f} bytes of state each")
    axes.set_xlabel("step")
    axes.set_ylabel(f"training loss, nats per token, mean of {WINDOW} steps")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default="target/jax-example")
    options = parser.parse_args()
    if options.steps < WINDOW:
        parser.error(f"--steps is {options.steps}; a curve needs {WINDOW}")
    # The same curves give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "lowbit", "svg.fonttype": "none"})

    shape = gpt.Shape(layers=options.layers)
    task = language_model.task(0, language_model.SMALL._replace(shape=shape))
    parameters = sum(param.size for param in jax.tree.leaves(task.params))
    print(f"{parameters:,} parameters, {options.steps} steps")
    print("| optimizer | validation loss | state MB | B/param | temporaries MB |")
    print("|---|---:|---:|---:|---:|")
    results = {}
    for name, adamw in OPTIMIZERS.items():
        result = results[name] = {"parameters": parameters, **train(task, adamw, options.steps)}
        print(
            f"| {name} | {result['validation_loss']:.4f} | {result['state_bytes'] / 1e6:.2f}"
            f" | {result['state_bytes'] / parameters:.3f} | {result['temporaries'] / 1e6:.1f} |",
            flush=True,
        )
        # Untrained, the loss is log 4096 = 8.3.
        if not result["losses"][-WINDOW:].mean() < result["losses"][0] - 0.5:
            sys.exit(f"{name} did not learn: {result['losses'][0]} to {result['losses'][-1]}")
    options.out.mkdir(parents=True, exist_ok=True)
    plot(results, options.out / "loss.svg")
    print(f"loss curves: {options.out / 'loss.svg'}")


if __name__ == "__main__":
    main()
