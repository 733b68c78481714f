"""Parameters and gradients, as numpy arrays; a bf16 or f16 array is one of uint16.

`param` and `grad` are those of tests/common/README.md, `Random` makes fresh ones.
"""

import numpy as np

#: Of an element, in bytes.
SIZES = {"f32": 4, "bf16": 2, "f16": 2}


def encode(values, dtype):
    """f32, or bf16 or f16 by truncation."""
    bits = values.view(np.uint32)
    if dtype == "f32":
        return values
    if dtype == "bf16":
        return (bits >> 16).astype(np.uint16)
    sign, exponent, fraction = bits >> 31 << 15, bits >> 23 & 0xFF, bits >> 13 & 0x3FF
    normal = exponent >= 113
    return (sign | np.where(normal, exponent - 112 << 10 | fraction, 0)).astype(np.uint16)


# ---- the conformance cases -----------------------------------------------------------------------


def word(stream, index):
    with np.errstate(over="ignore"):
        x = np.uint64(stream << 40) + index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def number(h, exponent):
    n = (h >> np.uint64(40)).astype(np.int64) - (1 << 23)
    return np.ldexp(n.astype(np.float64), exponent).astype(np.float32)


def param(stream, numel, dtype):
    return encode(number(word(stream, np.arange(numel)), -27), dtype)


def grad(stream, numel, dtype):
    index = np.arange(numel)
    h = word(stream, index)
    values = number(h, -23 - (h & np.uint64(15)).astype(np.int64))
    values[index // 512 % 5 == 4] = 0
    return encode(values, dtype)


# ---- random numbers ------------------------------------------------------------------------------


class Random:
    """Numbers that reach what the kernels treat apart: each run of 128 elements has a magnitude of
    its own, down to squares that are subnormal or 0, and some runs are all zeros."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def _runs(self, numel, low, high):
        rng = self.rng
        runs = -(-numel // 128)
        exponents = np.repeat(rng.integers(low, high, runs), 128)[:numel]
        zeros = np.repeat(rng.random(runs) < 0.05, 128)[:numel]
        values = rng.standard_normal(numel, np.float32)
        # Some elements lie far below the largest of their run.
        exponents = exponents - rng.integers(0, 12, numel) * (rng.random(numel) < 0.3)
        values = np.ldexp(values, exponents.astype(np.int32))
        values[zeros] = 0
        values[rng.random(numel) < 0.01] = -0.0
        return values

    def param(self, numel, dtype):
        return encode(self._runs(numel, -12, 2), dtype)

    def grad(self, numel, dtype):
        return encode(self._runs(numel, -76, 12), dtype)

    def bad_grad(self, numel, dtype):
        """Also NaN, infinity, and values whose square overflows, so that some blocks have one."""
        values = self._runs(numel, -20, 2)
        bad = np.array([np.nan, -np.nan, np.inf, -np.inf, 1e30, -3e38], np.float32)
        at = np.flatnonzero(self.rng.random(numel) < 1 / 1000)
        values[at] = self.rng.choice(bad, at.size)
        return encode(values, dtype)

    def hyper(self):
        """Hyper-parameters by name, each an f32."""
        rng = self.rng
        values = {
            "lr": 10 ** rng.uniform(-5, -2),
            "beta1": rng.choice([0.0, 0.9, 0.95]),
            "beta2": rng.choice([0.95, 0.99, 0.999]),
            "eps": 10 ** rng.uniform(-10, -6),
            "weight_decay": rng.choice([0.0, 0.01, 0.1]),
            "grad_scale": 2.0 ** rng.integers(-8, 1),
            "clip_factor": rng.uniform(0.1, 1),
        }
        return {name: float(np.float32(value)) for name, value in values.items()}
