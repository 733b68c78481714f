"""Training with one of the library's optimizers: the same loop for every arm and experiment."""

import functools
import json
import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowbit.jax

import arms

#: A run is unstable if its loss is not finite, or the mean of WINDOW losses, after warm-up, rises
#: by more than RISE nats over the lowest such mean so far or over the loss before the first step.
WINDOW, RISE = 20, 0.5


class Task(NamedTuple):
    """What is trained.

    loss: parameters, batch -> scalar, for gradients.
    params: the initial parameters.
    batch: step (from 0) -> what `loss` takes.
    decays: a tree of bools, which parameters weight decay is for.
    score: parameters -> a dict of numbers, after the last step.
    probe: parameters -> a number, now and then on the way; None: nothing.
    """

    loss: Callable
    params: Any
    batch: Callable
    decays: Any
    score: Callable
    probe: Callable | None = None


class Settings(NamedTuple):
    """Hyper-parameters, the same for all arms.

    schedule: "cosine" (to a tenth), "linear" (to zero) or "constant", after a linear warm-up.
    clip: global norm of gradients; 0: none.
    """

    steps: int
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: str = "constant"
    clip: float = 0.0

    def lr_at(self, step):
        """The learning rate of a step, from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.schedule == "cosine":
            return self.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        if self.schedule == "linear":
            return self.lr * (1 - done)
        return self.lr


def seeded(spec, seed):
    """A spec's JSON form with this seed for its random numbers."""
    return {**json.loads(lowbit.Spec(spec).json), "seed": seed}


def optimizer(task, settings, spec):
    """The spec's optimizer with the settings' hyper-parameters. Lion's betas are its paper's, and its
    decay, like that of SGDM, is decoupled and as much a step as AdamW's.
    """
    how = {"mask": task.decays, "spec": spec, "threads": 1}
    name = json.loads(lowbit.Spec(spec).json)["optimizer"]
    if name == "adamw":
        betas = (settings.beta1, settings.beta2)
        return lowbit.jax.adamw(settings.lr, *betas, settings.eps, settings.weight_decay, **how)
    decay = settings.weight_decay / arms.RATES[name]
    if name == "lion":
        return lowbit.jax.lion(settings.lr, weight_decay=decay, **how)
    return lowbit.jax.sgdm(settings.lr, settings.beta1, decay, decoupled=True, **how)


@functools.cache
def gradient(loss):
    """Compiled: parameters, batch, norm to clip at -> loss, gradients, the factor that clips."""

    @jax.jit
    def function(params, batch, clip):
        value, grads = jax.value_and_grad(loss)(params, batch)
        norm = jnp.sqrt(sum((grad * grad).sum() for grad in jax.tree.leaves(grads)))
        factor = jnp.where((clip > 0) & (norm > clip), clip / norm, 1.0)
        return value, grads, factor

    return function


def train(task, settings, spec, progress=lambda step, loss: None, until_unstable=False):
    """Trains and returns a dict: `unstable`, `first_loss`, `train_loss` (means of WINDOW steps),
    `probes` (pairs of step and number), `state_bytes`, and what `task.score` says. Stops at a loss
    that is not finite, or as soon as the run is unstable, if that is all one wants to know.
    """
    tx = optimizer(task, settings, spec)
    apply = jax.jit(tx.apply, donate_argnums=(1, 2))

    def step(carry, inputs):
        params, state = carry
        batch, rate = inputs
        value, grads, factor = gradient(task.loss)(params, batch, settings.clip)
        return apply(grads, state, params, learning_rate=rate, clip_factor=factor), value

    run = _steps_of_one_program(step, settings.steps)
    params = jax.tree.map(jnp.copy, task.params)
    state = tx.init(params)
    losses, means, probes, first, done = [], [], [], None, 0
    while done < settings.steps:
        numbers = range(done, done + run.steps)
        batches, rates = map(task.batch, numbers), map(settings.lr_at, numbers)
        (params, state), values = run((params, state), list(batches), list(rates))
        done += run.steps
        first = float(values[0]) if first is None else first
        losses.extend(values)
        if len(losses) == WINDOW or done == settings.steps:
            means.append(float(np.mean(np.asarray(losses, np.float64))))
            losses = []
            progress(done, means[-1])
            if not math.isfinite(means[-1]):
                break
            if until_unstable and unstable(first, means, settings.warmup):
                break
        if task.probe and done % 100 == 0:
            probes.append((done, float(task.probe(params))))
    return {
        "unstable": unstable(first, means, settings.warmup),
        "first_loss": first,
        "train_loss": means,
        "probes": probes,
        "state_bytes": tx.plan(params).state_bytes,
        **task.score(params),
    }


class _OneByOne(NamedTuple):
    """A program for each step's gradients, which all runs share, and one for its update."""

    step: Callable
    steps: int = 1

    def __call__(self, carry, batches, rates):
        carry, value = self.step(carry, (batches[0], rates[0]))
        return carry, [value]


class _Scan(NamedTuple):
    """One program for many steps: on a GPU the host would take longer for each than the device."""

    program: Callable
    steps: int

    def __call__(self, carry, batches, rates):
        batches = jax.tree.map(lambda *parts: np.stack(parts), *batches)
        carry, values = self.program(carry, (batches, np.float32(rates)))
        return carry, np.asarray(values)


def _steps_of_one_program(step, steps):
    if jax.default_backend() == "cpu":
        return _OneByOne(step)
    program = jax.jit(functools.partial(jax.lax.scan, step), donate_argnums=0)
    return _Scan(program, math.gcd(WINDOW, steps))


def unstable(first, means, warmup=0):
    """Whether a first loss and the means of WINDOW losses are those of an unstable run."""
    if not np.isfinite([first, *means]).all():
        return True
    # A run that blows up during warm-up stays above its first loss.
    after = np.array([first, *means[-(-warmup // WINDOW) :]])
    return bool((after - np.minimum.accumulate(after)).max() > RISE)
