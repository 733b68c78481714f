"""Presets side by side on every task: the table and the plot in README.md and include/PRESETS.md."""

import math
import pathlib
import re

import matplotlib.pyplot as plt

import arms
import comparisons
import fine_tune
import images
import language_model
import records
import tables

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ("README.md", "include/PRESETS.md")
MARKERS = re.compile(r"(<!-- cargo xtask experiment report -->\n).*?(\n<!-- end -->)", re.DOTALL)

PLOT = "summary"

#: Rows, by the arms' names.
ARMS = (
    "adamw32",
    "nf4-sr+rank1/power2",
    "adamw4",
    "adamw4-block",
    "nf4-sr+factored",
    "adamw8",
    "sgdm:nf4-sr",
    "lion:nf4-sr",
    # What a change of the learning rate does.
    "adamw32@0.7lr",
)


def _language(beta2, steps=2000):
    def is_of(run):
        settings = run["settings"]
        small = run["model"]["batch"] == language_model.SMALL.batch
        return small and (settings["steps"], settings["beta2"]) == (steps, beta2)

    return is_of


#: Columns: title, unit, experiment, which runs, metric, delta, -1 where more is better.
TASKS = (
    (
        *("language model, β2 = 0.999", "nats", "e1", _language(0.999)),
        *("validation_loss", language_model.DELTA, 1),
    ),
    (
        *("language model, β2 = 0.95", "nats", "e1", _language(0.95)),
        *("validation_loss", language_model.DELTA, 1),
    ),
    ("fine-tuning", "points", "e2", lambda run: True, "accuracy", fine_tune.DELTA, -1),
    (
        *("glyphs", "points", "e3", lambda run: run["case"] == "glyphs"),
        *("accuracy", images.DELTA, -1),
    ),
)


def write(save):
    """Puts the table and the plot into the pages. save: figure, name, text -> a link from here."""
    columns = [_column(*task) for task in TASKS]
    plot = _plot(columns, save)
    for page in PAGES:
        path = ROOT / page
        here = pathlib.Path(__file__).parent.relative_to(ROOT).as_posix()
        up = "" if path.parent == ROOT else "../"
        linked = plot.replace("(plots/", f"({up}{here}/plots/")
        block = "\n".join([*_table(columns), "", linked])
        text = path.read_text(encoding="utf-8")
        path.write_text(MARKERS.sub(rf"\g<1>\n{block}\n\g<2>", text), encoding="utf-8")


def _column(title, unit, experiment, is_of, metric, delta, sign):
    """(title, delta, {arm: (Comparison, unstable runs, runs)}) of the runs on a CPU."""
    runs = records.Records(experiment).read()
    by_arm = tables.by_arm(run for run in runs if run["device"] == "cpu" and is_of(run))
    cells = {}
    for arm in ARMS:
        own = by_arm.get(arm, [])
        found = tables.compared(own, by_arm[arms.yardstick(arm)], metric, delta, sign)
        cells[arm] = (found, sum(run["result"]["unstable"] for run in own), len(own))
    return f"{title}, {unit}; δ = {delta}", delta, cells


def _table(columns):
    """A row for each arm."""
    lines = tables.rule(["preset", *(title for title, _, _ in columns)])
    for arm in ARMS:
        cells = [_cell(arm, delta, *cells[arm]) for _, delta, cells in columns]
        lines += [tables.row([f"`{tables.PRESETS.get(arm, arm)}`", *cells])]
    return lines


def _cell(arm, delta, comparison, unstable, runs):
    if not runs:
        return "-"
    if unstable:
        return f"unstable in {unstable} of {runs}"
    if arm == arms.yardstick(arm):
        return f"({runs})"
    digits = 3 if delta < 0.1 else 2
    mean, pairs = f"{comparison.mean:+.{digits}f}", len(comparison.differences)
    if math.isnan(comparison.error):
        return f"{mean} ({pairs})"
    return f"{mean} ± {comparison.error:.{digits}f} ({pairs}): {comparison.verdict}"


def _plot(columns, save):
    """Means and 90 % intervals in units of delta."""
    shown = [arm for arm in reversed(ARMS) if arm != arms.yardstick(arm)]
    figure, axes = plt.subplots(1, len(columns), figsize=(10, 2.6), sharey=True)
    for axis, (title, delta, cells) in zip(axes, columns):
        axis.axvspan(-1, 1, color="0.9", lw=0)
        axis.axvline(0, color="0.5", lw=0.8)
        for y, arm in enumerate(shown):
            comparison, unstable, runs = cells[arm]
            if unstable:
                axis.annotate("unstable", (0, y), color="C3", ha="center", va="center", fontsize=8)
            elif runs and math.isfinite(comparison.mean):
                if len(comparison.differences) >= comparisons.FEWEST:
                    ends = [comparison.low / delta, comparison.high / delta]
                    axis.plot(ends, [y, y], color="C0", lw=2)
                axis.plot(comparison.mean / delta, y, "o", color="C0", ms=5)
        axis.set_xlim(-4, 4)
        axis.set_ylim(-0.6, len(shown) - 0.4)
        axis.set_title(title.partition(";")[0].replace(", ", "\n", 1), fontsize=8)
        axis.set_xlabel("worse than 32 bits by, in δ", fontsize=8)
    names = [tables.PRESETS.get(arm, arm) for arm in shown]
    axes[0].set_yticks(range(len(shown)), names, fontsize=8)
    text = "differences to 32 bits in units of δ; bars: 90 % intervals of three pairs or more"
    return save(figure, PLOT, text)
