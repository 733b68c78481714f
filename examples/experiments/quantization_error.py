"""E5: what quantizers do to real moments, without the noise of training.

E1's model trains in 32 bits through changes of regime. The library follows the same gradients with
every quantizer of m and of v, so that each carries its own errors from step to step, and the
carried states are compared with moments in double precision:

* preconditioner ratio, h(q(v)) / h(v) with h(v) = 1 / (sqrt(v^) + eps): 1 is exact, less slows the
  coordinate down, more is what a zero in v's map does;
* radial bias of m, <q(m), m> / <m, m> - 1: negative is shrinking;
* next-step error: the relative L2 error of the update that the next gradient gives.

In the middle of the run every 16th row and every 16th column of the matrices gets no gradient for a
while, as rare tokens and dead units do. A quiet row has blocks of its own, whose scales decay; a
quiet column shares its blocks with living ones.

Static errors, of quantizing the exact moments once, are there beside the carried ones.
"""


import functools

import jax
import numpy as np

import arms
import data
import language_model
import records
import training

import lowbit
from lowbit import core

#: In these steps some rows and columns of every matrix get no gradient.
QUIET = (100, 150)
QUIET_ONE_IN = 16
#: From here on the learning rate is a tenth.
DROP = 200
STEPS = 240
#: After how many steps moments are compared. Names with "rows" or "columns" look at the quiet ones.
CHECKPOINTS = {
    "early": 50,
    "settled": QUIET[0],
    "quiet rows": QUIET[1],
    "quiet columns": QUIET[1],
    "thawed rows": QUIET[1] + 10,
    "thawed columns": QUIET[1] + 10,
    "late": DROP,
    "after the drop": STEPS,
}
#: Of m, beside which all of v's quantizers are judged in the next step, and of v likewise.
PAIRED = ("f32", "de", "nf4", "nf4-sr")
BESIDE = ("f32", "rank1/linear", "rank1/power2")

#: Elements of a tensor that are followed.
LARGE = 1 << 17

BETA1, EPS = 0.9, 1e-8


def trajectory(beta2, seed=0, steps=STEPS, model=language_model.SMALL):
    """Trains in 32 bits; yields, for each step, the clipped gradients as a list of arrays."""
    task = language_model.task(seed, model)
    options = language_model.settings(STEPS, beta2)
    tx = training.optimizer(task, options, "adamw32")
    apply = jax.jit(tx.apply, donate_argnums=(1, 2))
    params = jax.tree.map(jax.numpy.copy, task.params)
    state = tx.init(params)
    for step in range(steps):
        _, grads, factor = training.gradient(task.loss)(params, task.batch(step), options.clip)
        leaves, tree = jax.tree.flatten(grads)
        leaves = [np.asarray(leaf) * np.float32(factor) for leaf in leaves]
        if QUIET[0] <= step < QUIET[1]:
            for leaf in leaves:
                if leaf.ndim > 1:
                    leaf[:: QUIET_ONE_IN * -(-leaf.size // LARGE)] = 0
                    leaf[:, ::QUIET_ONE_IN] = 0
        rate = options.lr * min(1, (step + 1) / options.warmup) * (0.1 if step >= DROP else 1)
        yield leaves
        params, state = apply(tree.unflatten(leaves), state, params, learning_rate=rate)


def _quiet(shape, axis):
    """A mask of the quiet rows or columns of a matrix that is followed."""
    chosen = np.zeros(shape, bool)
    every = slice(None, None, QUIET_ONE_IN)
    chosen[every if axis == "rows" else (slice(None), every)] = True
    return chosen


class Carried:
    """The state of one quantizer of m and one of v, following gradients."""

    def __init__(self, m, v, shapes, beta2):
        spec = {"optimizer": "adamw", "m": arms.M[m], "v": arms.V[v]}
        tensors = [core.Tensor(str(i), shape) for i, shape in enumerate(shapes)]
        self.plan = lowbit.Plan(spec, tensors)
        self.state = self.plan.zeros()
        self.beta2 = beta2

    def step(self, grads, step):
        updates = [np.empty_like(grad) for grad in grads]
        # Parameters do not matter without weight decay: the gradients stand for them.
        hyper = {"lr": 1.0, "beta1": BETA1, "beta2": self.beta2, "eps": EPS, "weight_decay": 0.0}
        self.plan.step(grads, grads, self.state, updates=updates, step=step, **hyper)

    def decoded(self, name):
        """One moment of all tensors, as one array."""
        return _flat(self.plan.decompress(name, self.state))

    def quantized_once(self, name, values):
        """Another state's exact values, quantized and restored."""
        state = self.plan.zeros()
        self.plan.compress(name, values, state)
        return _flat(self.plan.decompress(name, state))


class Exact:
    """Moments in double precision, with the betas of the library: f32 numbers."""

    def __init__(self, shapes, beta2):
        self.betas = float(np.float32(BETA1)), float(np.float32(beta2))
        self.m = [np.zeros(shape) for shape in shapes]
        self.v = [np.zeros(shape) for shape in shapes]

    def step(self, grads):
        for m, v, grad in zip(self.m, self.v, grads):
            m += (1 - self.betas[0]) * (grad - m)
            v += (1 - self.betas[1]) * (np.square(grad, dtype=np.float64) - v)


def _flat(arrays):
    return np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])


def follow(beta2, m_names, v_names, checkpoints, progress=None, model=language_model.SMALL):
    """The errors at each checkpoint, of each quantizer.

    Returns {checkpoint: {"m": {name: numbers}, "v": ..., "next": {"m+v": numbers}}}.
    """
    steps = max(checkpoints.values())
    results, due = {}, None
    exact = None
    for step, grads in enumerate(trajectory(beta2, 0, steps + 1, model)):
        # Only tensors that would be quantized; of large ones a part of the rows is enough.
        kept = [
            np.ascontiguousarray(grad[:: -(-grad.size // LARGE)])
            for grad in grads
            if grad.size > 4096
        ]
        if exact is None:
            shapes = [grad.shape for grad in kept]
            exact = Exact(shapes, beta2)
            names = {
                "m": dict.fromkeys(m_names),
                "v": dict.fromkeys(v_names),
            }
            carriers = []
            for i in range(max(len(m_names), len(v_names))):
                m, v = m_names[i % len(m_names)], v_names[i % len(v_names)]
                carrier = Carried(m, v, shapes, beta2)
                carriers.append(carrier)
                # Quantizers do not see each other: one carrier serves a pair of them.
                names["m"][m] = names["m"][m] or carrier
                names["v"][v] = names["v"][v] or carrier
        for checkpoint in [name for name, at in checkpoints.items() if at == step]:
            # The state after `step` steps; this step's gradients are the next ones.
            results[checkpoint] = compare(exact, names, kept, step, checkpoint)
        exact.step(kept)
        for carrier in carriers:
            carrier.step(kept, step + 1)
        if progress:
            progress(step)
    return results


def compare(exact, carriers, grads, step, checkpoint):
    """The numbers of one checkpoint; see the top of this file."""
    beta1, beta2 = exact.betas
    axis = checkpoint.split()[-1]
    if axis in ("rows", "columns"):
        chosen = np.concatenate([_quiet(grad.shape, axis).ravel() for grad in grads])
    else:
        # A part of the elements, always the same ones.
        chosen = np.random.default_rng(0).random(sum(grad.size for grad in grads)) < 0.2
    m, v, g = (_flat(arrays)[chosen] for arrays in (exact.m, exact.v, grads))
    once = {
        name: [value.astype(np.float32) for value in getattr(exact, name)] for name in ("m", "v")
    }

    def update(m, v):
        m, v = m + (1 - beta1) * (g - m), v + (1 - beta2) * (g * g - v)
        root = np.sqrt(v / (1 - beta2 ** (step + 1)))
        return m / (1 - beta1 ** (step + 1)) / (root + EPS)

    def h(v):
        return 1 / (np.sqrt(v / (1 - beta2**step)) + EPS)

    def of_v(q):
        ratio = np.log2(h(q) / h(v))
        low, median, high = np.quantile(ratio, (0.01, 0.5, 0.99))
        return {
            "zeros": float((q == 0).mean()),
            "relative_l1": float(np.abs(q - v).sum() / v.sum()),
            "log2_ratio": {"p1": low, "median": median, "p99": high, "max": ratio.max()},
            "mean_abs_log2": float(np.abs(ratio).mean()),
        }

    def of_m(q):
        return {
            "relative_l2": float(np.linalg.norm(q - m) / np.linalg.norm(m)),
            "radial_bias": float(q @ m / (m @ m) - 1),
            "zeros": float((q == 0).mean()),
        }

    target = update(m, v)
    decoded = {
        kind: {name: carrier.decoded(kind)[chosen] for name, carrier in carriers[kind].items()}
        for kind in ("m", "v")
    }

    def of_next(q_m, q_v):
        u = update(decoded["m"].get(q_m, m), decoded["v"].get(q_v, v))
        return {
            "relative_l2": float(np.linalg.norm(u - target) / np.linalg.norm(target)),
            "size": float(np.abs(u).sum() / np.abs(target).sum()),
            "cosine": float(u @ target / np.linalg.norm(u) / np.linalg.norm(target)),
        }

    numbers = {
        kind: {
            name: {
                "carried": measure(decoded[kind][name]),
                "once": measure(carrier.quantized_once(kind, once[kind])[chosen]),
            }
            for name, carrier in carriers[kind].items()
        }
        for kind, measure in (("m", of_m), ("v", of_v))
    }
    pairs = [(q_m, q_v) for q_m in PAIRED if q_m in carriers["m"] for q_v in carriers["v"]]
    pairs += [(q_m, q_v) for q_m in carriers["m"] for q_v in BESIDE if q_v in carriers["v"]]
    numbers["next"] = {f"{q_m}+{q_v}": of_next(q_m, q_v) for q_m, q_v in dict.fromkeys(pairs)}
    return _rounded(numbers)


def _rounded(value):
    """Five significant digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.5g}")


def groups():
    """What is followed at once: {name: (quantizers of m, quantizers of v)}."""
    names, size = list(arms.V), 6
    parts = {f"v{i // size}": (PAIRED, names[i : i + size]) for i in range(0, len(names), size)}
    return {"m": (list(arms.M), BESIDE), **parts}


def compare_all(store, part, parts):
    """All quantizers through all changes of regime, at both beta2."""
    jobs = [(beta2, name) for beta2 in (0.999, 0.95) for name in groups()]
    for beta2, name in jobs[part::parts]:
        m_names, v_names = groups()[name]
        key = {
            "arm": name,
            "spec": {
                "m": {name: arms.M[name] for name in m_names},
                "v": {name: arms.V[name] for name in v_names},
            },
            "seed": 0,
            "settings": {"beta2": beta2, "steps": STEPS, "checkpoints": CHECKPOINTS},
            "data": data.text().digest,
        }
        progress = records.progress(f"e5 {name} beta2 {beta2}", STEPS)
        follow_all = functools.partial(follow, beta2, m_names, v_names, CHECKPOINTS, progress)
        store.run(key, follow_all)
