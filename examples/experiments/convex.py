"""E7: SGD with a quantized momentum on a convex problem, against the paper's Theorem 1.

Multinomial logistic regression on the digits with a little L2. The theorem (appendix H) is about
m <- beta m + g, theta <- theta - alpha m with an unbiased quantizer of m, alpha at most
(1 - beta) / L, and bounds the mean gap of the averaged iterate:

    E[f(mean theta) - f*] <= (L beta / (1 - beta) + (1 - beta) / alpha) |theta_0 - theta*|^2 / 2T
                             + alpha sigma^2 / (1 - beta) + alpha sigma_m^2 / (1 - beta)

with sigma^2 the variance of gradients and sigma_m^2 that of the quantizer; both are measured along
the run, as the largest of any step. Stochastic rounding is unbiased where the table reaches both
ends: NF4 does, the signed dynamic exponent has no -1. Nearest rounding, which is what presets have,
is outside the theorem.
"""

import numpy as np
import scipy.optimize

import arms
import data
import lowbit

BETA = 0.9
L2 = 1e-3
BATCH = 32
#: Where the gap is compared with the bound.
HORIZONS = (100, 300, 1000, 3000)

#: The final gap to 32 bits that counts as none, in parts of f*.
DELTA = 0.01

ARMS = {
    "f32": {"bits": 32},
    "nf4, stochastic": arms.M["nf4-sr"],
    "de, stochastic": arms.M["de-sr"],
    "nf4, nearest": arms.M["nf4"],
    "de, nearest": arms.M["de"],
}


class Problem:
    """f(theta) = mean cross-entropy + L2 / 2 |theta|^2; theta has shape [features, classes]."""

    def __init__(self):
        images = data.digits()
        x = np.concatenate([images.train[0], images.test[0]]).reshape(-1, 64).astype(np.float64)
        self.x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        labels = np.concatenate([images.train[1], images.test[1]])
        self.y = np.eye(images.classes)[labels]
        self.digest = images.digest
        # A softmax's covariance has no eigenvalue above 1/2.
        self.smoothness = np.linalg.eigvalsh(self.x.T @ self.x / len(x)).max() / 2 + L2
        self.shape = self.x.shape[1], images.classes
        best = scipy.optimize.minimize(
            lambda theta: self.value(theta.reshape(self.shape)),
            np.zeros(self.shape).ravel(),
            jac=lambda theta: self.gradient(theta.reshape(self.shape)).ravel(),
            method="L-BFGS-B",
            options={"maxiter": 5000, "maxfun": 10000, "ftol": 1e-15, "gtol": 1e-9},
        )
        self.best, self.minimum = best.x.reshape(self.shape), float(best.fun)

    def value(self, theta):
        z = self.x @ theta
        top = z.max(1, keepdims=True)
        log_sum = np.log(np.exp(z - top).sum(1)) + top[:, 0]
        return float((log_sum - (z * self.y).sum(1)).mean() + L2 / 2 * (theta**2).sum())

    def gradient(self, theta, rows=slice(None)):
        x, y = self.x[rows], self.y[rows]
        z = x @ theta
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return x.T @ (p - y) / len(x) + L2 * theta


def descend(problem, quantizer, seed):
    """One run from zero: gaps at HORIZONS, and the largest variances of its steps."""
    spec = {"optimizer": "sgdm", "threshold": 0, "m": quantizer, "seed": seed}
    plan = lowbit.Plan(spec, [lowbit.core.Tensor("theta", problem.shape)])
    state, scratch = plan.zeros(), np.zeros(problem.shape, np.float32)
    theta = np.zeros(problem.shape, np.float32)
    beta, alpha = np.float32(BETA), np.float32((1 - BETA) / problem.smoothness)
    rng = np.random.default_rng(seed)
    total = np.zeros(problem.shape)
    gaps, noise, quantization = {}, 0.0, 0.0
    momentum = scratch.copy()
    for step in range(1, max(HORIZONS) + 1):
        total += theta
        rows = rng.integers(0, len(problem.x), BATCH)
        grad = problem.gradient(theta.astype(np.float64), rows).astype(np.float32)
        exact = problem.gradient(theta.astype(np.float64))
        noise = max(noise, float(((grad - exact) ** 2).sum()))
        # m before it is quantized, then as it is carried on.
        fresh = beta * momentum + grad
        plan.step([theta], [grad], state, step=step, lr=alpha, beta1=beta, weight_decay=0.0)
        momentum = plan.decompress("m", state)[0]
        quantization = max(quantization, float(((momentum - fresh) ** 2).sum()))
        if step in HORIZONS:
            gaps[str(step)] = problem.value(total / step) - problem.minimum
    return {"gaps": gaps, "noise": noise, "quantization": quantization}


def bound(problem, horizon, noise, quantization):
    """The right-hand side of the theorem."""
    alpha = (1 - BETA) / problem.smoothness
    start = float((problem.best**2).sum())
    first = (problem.smoothness * BETA / (1 - BETA) + (1 - BETA) / alpha) * start / (2 * horizon)
    return first + alpha * (noise + quantization) / (1 - BETA)


def compare(store, seeds, part, parts):
    """All roundings, each with every seed."""
    problem = Problem()
    jobs = [(arm, seed) for seed in range(seeds) for arm in ARMS]
    for arm, seed in jobs[part::parts]:
        key = {
            "arm": arm,
            "spec": ARMS[arm],
            "seed": seed,
            "settings": {"beta": BETA, "l2": L2, "batch": BATCH, "horizons": HORIZONS},
            "data": problem.digest,
        }

        def run(arm=arm, seed=seed):
            result = descend(problem, ARMS[arm], seed)
            bounds = {
                str(horizon): bound(problem, horizon, result["noise"], result["quantization"])
                for horizon in HORIZONS
            }
            return {**result, "bounds": bounds, "minimum": problem.minimum}

        store.run(key, run)
