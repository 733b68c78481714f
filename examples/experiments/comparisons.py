"""Statistics of paired runs: one seed is one pair, of an arm and of 32 bits."""

import math
from typing import NamedTuple

import numpy as np
import scipy.stats

#: Fewer pairs than this give no verdict.
FEWEST = 3


class Comparison(NamedTuple):
    """How much worse an arm is than the yardstick; negative is better.

    differences: one for each seed that both have run.
    mean, error: their mean and its standard error.
    low, high: the 90 % t-interval of the mean; with it inside +-delta, two one-sided tests at 5 %
        say that the arms are equivalent (TOST).
    p: of TOST, the larger of the two.
    verdict: in words.
    """

    differences: tuple
    mean: float
    error: float
    low: float
    high: float
    p: float
    verdict: str


def compare(worse_by, delta):
    """worse_by: {seed: difference}."""
    values = np.array([worse_by[seed] for seed in sorted(worse_by)], float)
    n = len(values)
    if not np.isfinite(values).all():
        nan = math.nan
        return Comparison(tuple(values), nan, nan, nan, nan, nan, "fails: not finite")
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        nan = math.nan
        return Comparison(tuple(values), mean, nan, nan, nan, nan, "too few seeds")
    error = float(values.std(ddof=1) / n**0.5)
    t = scipy.stats.t(n - 1)
    low, high = mean - t.ppf(0.95) * error, mean + t.ppf(0.95) * error
    if error > 0:
        p = max(t.sf((mean + delta) / error), t.cdf((mean - delta) / error))
    else:
        p = float(abs(mean) >= delta)
    return Comparison(
        tuple(values), mean, error, low, high, float(p), _verdict(n, low, high, delta)
    )


def _verdict(n, low, high, delta):
    if n < FEWEST:
        return "too few seeds"
    if -delta < low and high < delta:
        if low > 0:
            return "equivalent (a little worse)"
        if high < 0:
            return "equivalent (a little better)"
        return "equivalent"
    if low > delta:
        return "worse"
    if high < -delta:
        return "better"
    if low > 0:
        return "worse, by how much is open"
    if high < 0:
        return "better, by how much is open"
    return "undecided"


def fisher(unstable, runs, other_unstable, other_runs):
    """One-sided p of the first group being unstable more often (Fisher's exact test)."""
    table = [
        [unstable, runs - unstable],
        [other_unstable, other_runs - other_unstable],
    ]
    return float(scipy.stats.fisher_exact(table, alternative="greater").pvalue)
