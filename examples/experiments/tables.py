"""Rows of Markdown tables, and what stands in their cells."""

import collections
import math

import comparisons

#: Presets by the arms that became them.
PRESETS = {
    "nf4-sr+rank1/power2": "adamw4-robust",
    "nf4-sr+factored": "factor4",
    "sgdm:nf4-sr": "sgdm4",
    "lion:nf4-sr": "lion4",
}


def rule(titles):
    return [row(titles), row(["---"] * len(titles))]


def row(cells):
    return "| " + " | ".join(cells) + " |"


def by_arm(runs):
    arms = collections.defaultdict(list)
    for run in runs:
        arms[run["arm"]].append(run)
    return arms


def number(result, metric):
    return float(result.get(metric, math.nan))


def compared(runs, others, metric, delta, sign=1):
    """Pairs of one seed: how much worse the first runs are than the others."""
    exact = {run["seed"]: number(run["result"], metric) for run in others}
    worse_by = {
        run["seed"]: sign * (number(run["result"], metric) - exact[run["seed"]])
        for run in runs
        if run["seed"] in exact
    }
    return comparisons.compare(worse_by, delta)


def name(arm):
    """With the preset that it became."""
    return f"`{arm}` = **`{PRESETS[arm]}`**" if arm in PRESETS else f"`{arm}`"


def short(value, digits):
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.1e}"


def difference(comparison, digits):
    if math.isnan(comparison.error):
        return short(comparison.mean, digits)
    mean, error, low, high = (
        short(value, digits)
        for value in (comparison.mean, comparison.error, comparison.low, comparison.high)
    )
    return f"{mean} ± {error} [{low}, {high}]"
