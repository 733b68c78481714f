"""Parameters and gradients, as numpy arrays; a bf16 or f16 array is one of uint16.

`param` and `grad` are those of tests/common/README.md, `Random` makes fresh ones.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "common"))

from protocol import SHAPES, encode, grad, param

__all__ = ["SHAPES", "SIZES", "Random", "grad", "param"]

#: Of an element, in bytes.
SIZES = {"f32": 4, "bf16": 2, "f16": 2}


class Random:
    """Numbers that reach what the kernels treat apart: each run of 128 elements has a magnitude of
    its own, down to squares that are subnormal or 0, and some runs are all zeros.

    seed: of the part. name: of the check that has this stream for itself.
    """

    def __init__(self, seed, name=""):
        self.rng = np.random.default_rng([seed, *name.encode()])

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
        """Also NaN, infinity, and values whose square overflows (in f16, more infinities), so that
        some blocks have one."""
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
