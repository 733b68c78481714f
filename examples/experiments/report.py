"""RESULTS.md and its plots from the lines in results/: `run.py report`.

Only this file is written by hand; what it prints follows from the runs.
"""

import collections
import json
import math
import pathlib

import matplotlib

matplotlib.use("svg")
# The same runs give the same file.
matplotlib.rcParams["svg.hashsalt"] = "lowbit"
matplotlib.rcParams["svg.fonttype"] = "none"
import matplotlib.pyplot as plt
import numpy as np

import arms
import comparisons
import convex
import fine_tune
import gpt
import images
import language_model
import records
import summary
import tables

FOLDER = pathlib.Path(__file__).parent
PLOTS = FOLDER / "plots"

PREAMBLE = """# What the experiments show

Written by `cargo xtask experiment report` from the runs in `results/`; see [README.md](README.md)
for the protocol. Differences are paired by seed with 32-bit AdamW of the same code and
hyper-parameters (arms of SGDM and Lion with those in 32 bits); positive is worse. "90 %" is the t-interval of the mean difference; inside ±δ it
says *equivalent* (two one-sided tests at 5 %); fewer than three pairs say nothing. Arms are
`<m>+<v>` of [arms.py](arms.py), or presets.
"""


def write():
    """Writes RESULTS.md and plots/."""
    PLOTS.mkdir(exist_ok=True)
    sections = [PREAMBLE]
    for section in (
        *(language, fine_tuning, glyphs_and_digits, zero_point),
        *(errors, memory, theorem, provenance),
    ):
        sections += section()
    text = "\n".join(sections) + "\n"
    (FOLDER / "RESULTS.md").write_text(text, encoding="utf-8")
    summary.write(_save)
    for plot in PLOTS.glob("*.svg"):
        if plot.stem != summary.PLOT and f"({plot.parent.name}/{plot.name})" not in text:
            plot.unlink()


def language():
    runs = records.Records("e1").read()
    lines = [
        "## E1: a language model from scratch",
        "",
        f"Validation loss in nats per token; δ = {language_model.DELTA}.",
    ]
    for (steps, beta2), device, group in _grouped(runs, "steps", "beta2"):
        count = gpt.count(gpt.Shape(**group[0]["model"]["shape"]))
        lines += ["", f"### {_millions(count)} parameters, {steps} steps, beta2 = {beta2}, on {device}", ""]
        name = f"e1-{_millions(count, '')}-{steps}-{beta2}-{_slug(device)}"
        table, compared = _table(group, "validation_loss", language_model.DELTA)
        lines += table + _against_others(group, "validation_loss", language_model.DELTA)
        lines += ["", _intervals(f"{name}-differences", compared, language_model.DELTA)]
        lines += [_curves(f"{name}-loss", group)]
    return lines + [""]


def fine_tuning():
    lines = ["## E2: fine-tuning MiniLM on WordNet's classes", ""]
    lines += [f"Test accuracy in points; δ = {fine_tune.DELTA}.", ""]
    for (steps,), device, group in _grouped(records.Records("e2").read(), "steps"):
        lines += [f"### {steps} steps, on {device}", ""]
        name = f"e2-{steps}-{_slug(device)}"
        table, compared = _table(group, "accuracy", fine_tune.DELTA, sign=-1)
        lines += table + _against_others(group, "accuracy", fine_tune.DELTA, sign=-1)
        lines += ["", _intervals(f"{name}-differences", compared, fine_tune.DELTA)]
        lines += [_curves(f"{name}-loss", group), ""]
    return lines


def glyphs_and_digits():
    lines = ["## E3: images", ""]
    for (_, case), device, group in _grouped(records.Records("e3").read(), "steps", "case"):
        lines += [f"### {case}, on {device}", ""]
        lines += [f"Test accuracy in points; δ = {images.DELTA}.", ""]
        name = f"e3-{case}-{_slug(device)}"
        table, compared = _table(group, "accuracy", images.DELTA, sign=-1)
        lines += table + _against_others(group, "accuracy", images.DELTA, sign=-1)
        lines += ["", _intervals(f"{name}-differences", compared, images.DELTA)]
        if case == "digits":
            lines += ["", f"Test loss in nats; δ = {images.DELTA_LOSS}.", ""]
            lines += _table(group, "test_loss", images.DELTA_LOSS)[0]
        lines += [""]
    return lines


def zero_point():
    lines = ["## E4: a zero in v's map", "", "Runs that became unstable, of those that were made.", ""]
    for (steps, beta2), device, runs in _grouped(records.Records("e4").read(), "steps", "beta2"):
        lines += [f"### {steps} steps, beta2 = {beta2}, on {device}", ""]
        lines += _unstable_runs(runs)
    return lines


def _unstable_runs(runs):
    lines = []
    rates = sorted({run["settings"]["lr"] for run in runs})
    lines += tables.rule(["arm", "zero in v", *(f"lr {rate:g}" for rate in rates), "all"])
    counts = collections.Counter()
    for arm in (*language_model.WITH_ZERO, *language_model.ZERO_FREE, "adamw32"):
        own = [run for run in runs if run["arm"] == arm]
        zero = arm in language_model.WITH_ZERO
        cells = [
            _fraction([run for run in own if run["settings"]["lr"] == rate]) for rate in rates
        ]
        lines += [tables.row([f"`{arm}`", "yes" if zero else "no", *cells, _fraction(own)])]
        if arm != "adamw32":
            counts[zero, "runs"] += len(own)
            counts[zero, "unstable"] += sum(run["result"]["unstable"] for run in own)
    p = comparisons.fisher(
        *(counts[zero, what] for zero in (True, False) for what in ("unstable", "runs"))
    )
    with_zero, without = (
        f"{counts[zero, 'unstable']} of {counts[zero, 'runs']}" for zero in (True, False)
    )
    lines += [
        "",
        f"With a zero {with_zero} runs are unstable, without {without};"
        f" Fisher's exact p = {p:.2g}.",
    ]
    return lines + [""]


_ERRORS = (
    "States carried from step to step along the gradients of one 32-bit run. The error of the next"
    " step, m/√v, is relative, in L2, with the other moment in 32 bits. log2 h(q)/h(v), here late"
    " in the run, says how many times larger (in powers of two) a step gets. Quiet rows and"
    " columns have had no gradient for 50 steps. A quiet column shares its blocks of m with living"
    " ones: there nearest rounding keeps an old m for as long as they live, since 0.9 of a level"
    " rounds back to it where the next lower one is less than 0.8 of it."
)


def errors():
    lines = []
    for (beta2,), _, runs in _grouped(records.Records("e5").read(), "beta2"):
        result = _merged([run["result"] for run in runs])
        lines += [f"## E5: errors on real moments, beta2 = {beta2}", ""]
        lines += [
            _ERRORS,
            "",
        ]
        names = list(result)
        last = "late" if "late" in result else names[-1]
        lines += tables.rule(["v", *(f"next step, {name}" for name in names), *_TAILS])
        for v in result[last]["v"]:
            ratio = result[last]["v"][v]["carried"]["log2_ratio"]
            zeros = result[last]["v"][v]["carried"]["zeros"]
            lines += [
                tables.row(
                    [f"`{v}`"]
                    + [f"{result[name]['next'][f'f32+{v}']['relative_l2']:.3g}" for name in names]
                    + [f"{ratio[key]:+.2f}" for key in ("p1", "median", "p99")]
                    + [f"{100 * zeros:.2g} %"]
                )
            ]
        lines += ["", _v_plot(f"e5-v-{beta2}", result), ""]
        lines += tables.rule(["m", *(f"m, {name}" for name in names), "radial bias, late", "next step"])
        for m in result[last]["m"]:
            carried = {name: result[name]["m"][m]["carried"] for name in names}
            lines += [
                tables.row(
                    [f"`{m}`"]
                    + [f"{carried[name]['relative_l2']:.3g}" for name in names]
                    + [f"{100 * carried[last]['radial_bias']:+.2f} %"]
                    + [f"{result[last]['next'][f'{m}+f32']['relative_l2']:.3g}"]
                )
            ]
        lines += [""]
    return lines


def _merged(results):
    """The numbers of all groups of quantizers, by checkpoint and moment."""
    merged = collections.defaultdict(lambda: collections.defaultdict(dict))
    for result in results:
        for checkpoint, kinds in result.items():
            for kind, numbers in kinds.items():
                merged[checkpoint][kind].update(numbers)
    return merged


_TAILS = ["log2 h(q)/h(v): 1st percentile", "median", "99th", "zeros"]


def memory():
    runs = records.Records("e6").read()
    if not runs:
        return []
    lines = ["## E6: LLaMA-7B's state in memory", ""]
    lines += tables.rule(["arm", "counted", "measured", "difference", "stepped", "seconds"])
    for run in runs:
        result = run["result"]
        ratio = result["measured_bytes"] / result["counted_bytes"] - 1
        lines += [
            tables.row(
                [
                    f"`{run['arm']}`",
                    f"{result['counted_bytes']:,} B",
                    f"{result['measured_bytes']:,} B",
                    f"{100 * ratio:+.3f} %",
                    f"{result['tensors']} tensors",
                    f"{result['step_seconds']:.0f}",
                ]
            )
        ]
    return lines + [""]


def theorem():
    runs = records.Records("e7").read()
    if not runs:
        return []
    lines = [
        "## E7: SGDM on a convex problem and Theorem 1",
        "",
        "Mean gap f(mean θ) - f* over the seeds, and the bound with the largest measured variances."
        " The last column is the difference to f32's final gap with its 90 % interval, in parts of"
        f" f*; δ = {convex.DELTA}.",
        "",
    ]
    horizons = [str(horizon) for horizon in convex.HORIZONS]
    lines += tables.rule(["m", *(f"T = {horizon}" for horizon in horizons), "below the bound", "to f32"])
    by_arm = tables.by_arm(runs)
    exact = {run["seed"]: run["result"] for run in by_arm["f32"]}
    for arm, own in by_arm.items():
        results = {run["seed"]: run["result"] for run in own}
        means = {
            what: {t: np.mean([r[what][t] for r in results.values()]) for t in horizons}
            for what in ("gaps", "bounds")
        }
        below = all(means["gaps"][t] < means["bounds"][t] for t in horizons)
        minimum = own[0]["result"]["minimum"]
        to_exact = {
            seed: (result["gaps"][horizons[-1]] - exact[seed]["gaps"][horizons[-1]]) / minimum
            for seed, result in results.items()
            if seed in exact
        }
        compared = comparisons.compare(to_exact, convex.DELTA)
        lines += [
            tables.row(
                [f"{arm} ({len(own)} seeds)"]
                + [f"{means['gaps'][t]:.4f} < {means['bounds'][t]:.3g}" for t in horizons]
                + ["yes" if below else "**no**"]
                + ["" if arm == "f32" else tables.difference(compared, 4) + f", {compared.verdict}"]
            )
        ]
    return lines + [""]


def provenance():
    """Which versions the runs are of."""
    lines = ["## Runs", ""]
    lines += tables.rule(["experiment", "device", "runs", "core-minutes", "commits", "jax", "data"])
    for path in sorted(records.FOLDER.glob("*.jsonl")):
        by_device = collections.defaultdict(list)
        for run in records.Records(path.stem).read():
            by_device[run["device"]].append(run)
        for device, runs in sorted(by_device.items()):
            versions = [run["versions"] for run in runs]
            lines += [
                tables.row(
                    [
                        path.stem,
                        device,
                        str(len(runs)),
                        f"{sum(run['cpu_seconds'] for run in runs) / 60:.0f}",
                        ", ".join(sorted({version["commit"][:12] for version in versions})),
                        ", ".join(sorted({version["jax"] for version in versions})),
                        ", ".join(sorted({run["data"] for run in runs})),
                    ]
                )
            ]
    return lines


# --- tables --------------------------------------------------------------------------------------


def _fraction(runs):
    return f"{sum(run['result']['unstable'] for run in runs)}/{len(runs)}" if runs else "-"


def _grouped(runs, *names):
    """(settings or other facts of these names, device, runs): the longest first. Data, models and
    devices are never mixed."""
    groups = collections.defaultdict(list)
    for run in runs:
        facts = tuple(run["settings"].get(name, run.get(name)) for name in names)
        model = json.dumps(run.get("model"))
        groups[facts, run["device"], run["data"], model].append(run)

    def order(item):
        return [-fact if isinstance(fact, (int, float)) else fact for fact in item[0][0]]

    ordered = sorted(sorted(groups.items(), key=lambda item: item[0][1:]), key=order)
    return [(facts, device, group) for (facts, device, *_), group in ordered]


def _slug(device):
    """A device's name for a file's name: "h100" of "NVIDIA H100 80GB HBM3"."""
    return device.lower().removeprefix("nvidia ").split()[0]


def _millions(count, unit=" M"):
    return f"{count / 1e6:.3g}{unit}"


def _table(runs, metric, delta, sign=1):
    """A row for each arm; and {arm: Comparison}. sign: -1 where more is better."""
    digits = 4 if delta < 0.1 else 2
    by_arm = tables.by_arm(runs)
    compared = {
        arm: tables.compared(own, by_arm[arms.yardstick(arm)], metric, delta, sign)
        for arm, own in list(by_arm.items())
    }
    is_yardstick = {arm: arm == arms.yardstick(arm) for arm in compared}
    order = sorted(
        compared,
        key=lambda arm: (
            arms.yardstick(arm),
            not is_yardstick[arm],
            any(run["result"]["unstable"] for run in by_arm[arm]),
            _sortable(compared[arm].mean),
        ),
    )
    titles = ["arm", "B/param", "each seed", "unstable", "difference, SE, 90 %", "verdict"]
    lines = tables.rule(titles)
    parameters = max(run["result"]["state_bytes"] for run in runs) / 8
    for arm in order:
        own = sorted(by_arm[arm], key=lambda run: run["seed"])
        values = " ".join(tables.short(tables.number(run["result"], metric), digits) for run in own)
        share = own[0]["result"]["state_bytes"] / parameters
        known, comparison = is_yardstick[arm], compared[arm]
        unstable = sum(run["result"]["unstable"] for run in own)
        verdict = f"unstable in {unstable} of {len(own)}" if unstable else comparison.verdict
        lines += [
            tables.row(
                [
                    tables.name(arm),
                    f"{share:.2f}",
                    values,
                    _fraction(own),
                    "" if known else tables.difference(comparison, digits),
                    "" if known else verdict,
                ]
            )
        ]
    return lines, {arm: compared[arm] for arm in order if not is_yardstick[arm]}


def _against_others(runs, metric, delta, sign=1):
    """How much worse `adamw4-robust` is than the other 4-bit AdamWs, where there are pairs."""
    by_arm = tables.by_arm(runs)
    lines = []
    for other in ("adamw4", "adamw4-block"):
        robust = by_arm["nf4-sr+rank1/power2"]
        found = tables.compared(robust, by_arm[other], metric, delta, sign)
        pairs = len(found.differences)
        if pairs >= comparisons.FEWEST:
            difference = tables.difference(found, 4 if delta < 0.1 else 2)
            lines += ["", f"`adamw4-robust` less `{other}`, {pairs} pairs: {difference}"]
    return lines


def _sortable(value):
    return value if math.isfinite(value) else math.inf


# --- plots ---------------------------------------------------------------------------------------


def _save(figure, name, text):
    figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    return f"![{text}](plots/{name}.svg)"


def _intervals(name, compared, delta):
    """Paired differences with their intervals, and each seed's."""
    shown = [
        (arm, c)
        for arm, c in compared.items()
        if math.isfinite(c.mean) and abs(c.mean) < 20 * delta
    ]
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.26 * max(1, len(shown))))
    axes.axvspan(-delta, delta, color="0.9", lw=0)
    axes.axvline(0, color="0.5", lw=0.8)
    for y, (arm, comparison) in enumerate(reversed(shown)):
        axes.plot(comparison.differences, [y] * len(comparison.differences), ".", color="0.6", ms=4)
        if len(comparison.differences) >= comparisons.FEWEST:
            axes.plot([comparison.low, comparison.high], [y, y], color="C0", lw=2)
        axes.plot(comparison.mean, y, "o", color="C0", ms=5)
    axes.set_yticks(range(len(shown)), [arm for arm, _ in reversed(shown)], fontsize=8)
    axes.set_xlabel("worse than 32 bits by (grey: within ±δ; bar: 90 % interval; dots: seeds)")
    left_out = len(compared) - len(shown)
    text = "paired differences" + (f"; {left_out} far outside are not drawn" if left_out else "")
    return _save(figure, name, text)


def _curves(name, runs):
    figure, axes = plt.subplots(figsize=(7, 4))
    for arm, own in tables.by_arm(runs).items():
        curves = [run["result"]["train_loss"] for run in own]
        if any(run["result"]["unstable"] for run in own) or not curves:
            continue
        shortest = min(map(len, curves))
        mean = np.mean([curve[:shortest] for curve in curves], axis=0)
        steps = 20 * (1 + np.arange(shortest))
        axes.plot(steps, mean, lw=1.2, label=f"{arm} ({len(own)})")
    axes.set_xlabel("step")
    axes.set_ylabel("train loss, nats per token, mean of 20 steps and all seeds")
    axes.set_ylim(top=6.5)
    axes.legend(fontsize=7)
    return _save(figure, name, "training loss; unstable arms are not drawn")


def _v_plot(name, result):
    """The spread of the preconditioner ratio of each quantizer of v, at each checkpoint."""
    checkpoint = "late" if "late" in result else list(result)[-1]
    quantizers = result[checkpoint]["v"]
    shown = [v for v in quantizers if v != "f32"]
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.2 * len(shown)))
    for y, v in enumerate(reversed(shown)):
        ratio = quantizers[v]["carried"]["log2_ratio"]
        axes.plot([ratio["p1"], ratio["p99"]], [y, y], color="C0", lw=2)
        axes.plot(ratio["median"], y, "o", color="C0", ms=4)
        axes.plot(ratio["max"], y, "|", color="C3", ms=6)
    axes.axvline(0, color="0.5", lw=0.8)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yticks(range(len(shown)), list(reversed(shown)), fontsize=7)
    axes.set_xlabel("log2 h(q(v)) / h(v): 1st to 99th percentile, median, largest (red)")
    return _save(figure, name, f"preconditioner ratio, {checkpoint}")
