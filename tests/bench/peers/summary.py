"""Figures and tables of what `measure.py` wrote."""

import statistics

BASELINE = "torch fused"
IN_PLACE, COPY = "in-place read-modify-write", "copy"

#: Times as multiples of another's. What is first is divided by what is second.
RATIOS = (
    ("torch fused", "lowbit adamw4-block"),
    ("lowbit adamw32", "lowbit adamw4-block"),
    ("DeepSpeed CPUAdam", "lowbit adamw4-block"),
    ("torchao AdamW4bit", "lowbit adamw4-block"),
    ("bitsandbytes AdamW8bit", "lowbit adamw4-block"),
    ("lowbit adamw4", "lowbit adamw4-block"),
    ("lowbit adamw4-block, states stochastic", "lowbit adamw4-block"),
    ("lowbit adamw4-block, bf16", "lowbit adamw4-block"),
    ("lowbit adamw4-block, bf16 stochastic", "lowbit adamw4-block"),
    ("lowbit adamw4, bf16", "lowbit adamw4"),
    ("lowbit adamw4, bf16 stochastic", "lowbit adamw4"),
)


def times(result, name):
    """Seconds of each round that it took part in."""
    return [r["seconds"][name] for r in result["rounds"] if name in r["seconds"]]


def ratio(result, first, second):
    """Median over the rounds of the time of `first` by that of `second`, taken in the same round;
    None if they never met."""
    rounds = [r["seconds"] for r in result["rounds"]]
    met = [r[first] / r[second] for r in rounds if first in r and second in r]
    return statistics.median(met) if met else None


def spread(values):
    """Half of the distance between the quartiles, as a part of the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / middle


def bandwidth(result, name, moved):
    """Bytes per second, `moved` bytes being counted for a step."""
    return moved / statistics.median(times(result, name))


def row(result, name):
    """The figures of one contestant, or None if it was not timed."""
    seconds = times(result, name)
    if not seconds:
        return None
    info, numel = result["contestants"][name], result["numel"]
    rate = bandwidth(result, name, info["bytes"])
    return {
        "ns": statistics.median(seconds) / numel * 1e9,
        "spread": spread(seconds),
        "bytes": info["bytes"] / numel,
        "state": info["state_bytes"] / numel,
        "rate": rate,
        "fraction": rate / bandwidth(result, IN_PLACE, 8 * numel),
        "speedup": ratio(result, BASELINE, name),
        "cores": statistics.median(
            r["cores"][name] for r in result["rounds"] if name in r["cores"]
        ),
        "runs": len(seconds),
        "error": info["error"],
    }


def case_table(results):
    """Markdown for one case. results: threads -> result."""
    some = next(iter(results.values()))
    head = ["", "state B/param", "counted B/param"]
    for threads in results:
        head += [
            f"{_threads(threads)}: ns/param",
            "GB/s",
            "of in-place",
            "torch fused / it",
            "cores",
        ]
    lines, missing = [], {}
    for name in some["contestants"]:
        rows = [row(result, name) for result in results.values()]
        present = next((r for r in rows if r), None)
        if not present:
            missing[name] = some["contestants"][name].get("reason", "not measured")
            continue
        cells = [name, f"{present['state']:.3f}", f"{present['bytes']:.2f}"]
        for r in rows:
            cells += _figures(r) if r else ["—"] * 5
        lines.append(cells)
    text = table(head, lines)
    notes = [f"{name}: {why}." for name, why in missing.items()]
    slow = {r["runs"] for n in some["contestants"] if (r := row(some, n))}
    notes.append(f"Medians of {max(slow)} runs; ± is half the distance between the quartiles.")
    if min(slow) != max(slow):
        names = [n for n in some["contestants"] if (r := row(some, n)) and r["runs"] == min(slow)]
        notes.append(f"{', '.join(names)}: {min(slow)} runs.")
    for threads, result in results.items():
        moved = 8 * result["numel"]
        place, copy = (bandwidth(result, name, moved) / 1e9 for name in (IN_PLACE, COPY))
        notes.append(
            f"Memory on {_threads(threads)}: {place:.1f} GB/s in place, {copy:.1f} copied."
        )
    notes.append(cache_note(some))
    return f"{text}\n\n" + "\n".join(f"- {note}" for note in notes)


def cache_note(result):
    """The working sets as multiples of the last cache."""
    caches = result["settings"]["machine"]["caches"]
    name, size = max(caches.items(), key=lambda cache: cache[1])
    sets = [
        info["working_set"] / size
        for info in result["contestants"].values()
        if "working_set" in info
    ]
    least, most = min(sets), max(sets)
    return f"Working sets: {least:.1f} to {most:.1f} times the {size / 2**20:.0f} MiB of {name}."


def ratio_table(results):
    """Markdown. results: (case, threads) -> result; a column each."""
    head = ["", *(f"{case}, {threads}t" for case, threads in results)]
    lines = []
    for first, second in RATIOS:
        found = [ratio(result, first, second) for result in results.values()]
        if any(found):
            cells = [f"{value:.2f}" if value else "—" for value in found]
            lines.append([f"{first} / {second}", *cells])
    return table(head, lines)


def short_table(results, cases):
    """Markdown for the first page: ns/param of the given cases on each number of threads."""
    columns = [key for key in results if key[0] in cases]
    head = ["", "state B/param"]
    head += [f"{cases[case]}, {_threads(threads)}" for case, threads in columns]
    lines = []
    for name in results[columns[0]]["contestants"]:
        rows = [row(results[key], name) for key in columns]
        if not any(rows):
            continue
        state = next(r["state"] for r in rows if r)
        cells = [f"{r['ns']:.2f} ({_times(r['speedup'])})" if r else "—" for r in rows]
        lines.append([name, f"{state:.2f}", *cells])
    return table(head, lines)


def table(head, lines):
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def _figures(r):
    return [
        f"{r['ns']:.2f} ±{100 * r['spread']:.0f} %",
        f"{r['rate'] / 1e9:.1f}",
        f"{100 * r['fraction']:.0f} %",
        _times(r["speedup"]),
        f"{r['cores']:.1f}",
    ]


def _times(value):
    return f"{value:.2f}" if value else "—"


def _threads(threads):
    return f"{threads} thread{'' if threads == 1 else 's'}"
