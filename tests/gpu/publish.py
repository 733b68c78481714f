"""What a run found, for those who read the repository: publish.py RESULTS writes
tests/bench/results/gpu.json, a table in tests/gpu/README.md and the picture gpu.svg.

RESULTS is the run's results.json. Needs matplotlib, and no GPU.
"""

import collections
import json
import pathlib
import re
import sys

import matplotlib

matplotlib.use("svg")
# The same figures give the same file.
matplotlib.rcParams["svg.hashsalt"] = "lowbit"
matplotlib.rcParams["svg.fonttype"] = "none"

import matplotlib.pyplot as plt  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = re.compile(r"(<!-- publish\.py -->\n).*?(<!-- end -->)", re.DOTALL)
#: Parts with times, and what is said above their rows.
PARTS = {
    "timing": "10^9 parameters in one tensor",
    "model": "LLaMA-7B's tensors, bf16",
    "peers": "beside peers, 10^9 bf16 parameters",
    "budget": "LLaMA-7B in 80 GiB, all but the states in f32",
    "finetune": "fine-tuning",
    "offload_timing": "offload",
}
COLUMNS = {
    "milliseconds": ("ms", ".2f"),
    "gb_per_s": ("GB/s", ".0f"),
    "bytes_ms": ("its bytes at the copy's rate, ms", ".2f"),
    "times_the_floor": ("times the larger floor", ".2f"),
    "ratio": ("ratio", ".2f"),
    "host_us": ("host, us", ".0f"),
    "loss": ("loss", ".4f"),
    "peak_gb": ("peak, GB", ".2f"),
}


def main(results):
    results = json.loads(pathlib.Path(results).read_text(encoding="utf-8"))
    text = json.dumps(results, indent=1) + "\n"
    (ROOT / "tests/bench/results/gpu.json").write_text(text, encoding="utf-8")
    readme = ROOT / "tests/gpu/README.md"
    old = readme.read_text(encoding="utf-8")
    new, count = TABLE.subn(lambda found: f"{found[1]}{tables(results)}{found[2]}", old)
    if count != 1:
        raise SystemExit(f"{readme} has {count} places for the table, not one")
    readme.write_text(new, encoding="utf-8")
    draw(results, ROOT / "tests/bench/results/gpu.svg")


def tables(results):
    parts = results["parts"]
    checks = [(name, check) for name, part in parts.items() for check in part["checks"]]
    failed = [(name, check["name"]) for name, check in checks if not check["passed"]]
    if len(failed) > 5:
        by_part = collections.Counter(name for name, _ in failed)
        named = [f"{count} of `{name}`" for name, count in by_part.items()]
    else:
        named = [f"{name}, {check}" for name, check in failed]
    some = next(part for part in parts.values() if "gpu" in part["environment"])
    by_commit = collections.defaultdict(list)
    for name, part in parts.items():
        by_commit[part["library"].get("commit", "unknown")[:12]].append(f"`{name}`")
    if len(by_commit) == 1:
        commits = f"commit {next(iter(by_commit))}"
    else:
        commits = "; ".join(f"commit {commit}: {', '.join(of)}" for commit, of in by_commit.items())
    lines = [
        f"{some['environment']['gpu']}, torch {some['environment']['torch']}; {commits}.",
        f"{len(checks)} checks in {len(parts)} parts, {len(failed)} failed"
        f"{': ' if failed else ''}{'; '.join(named)}.",
        "",
    ]
    for name, title in PARTS.items():
        rows = parts.get(name, {}).get("measurements", [])
        used = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
        if not used:
            continue
        lines.append(f"| {title} | " + " | ".join(COLUMNS[key][0] for key in used) + " |")
        lines.append("|---" + "|--:" * len(used) + "|")
        for row in rows:
            cells = ("" if row.get(key) is None else format(row[key], COLUMNS[key][1]) for key in used)
            lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def draw(results, path):
    """Nanoseconds a parameter of one step, and the time of its bytes as a mark."""
    bars, ours = {}, set()
    for part in ("timing", "peers"):
        for row in results["parts"].get(part, {}).get("measurements", []):
            if row.get("ns_per_param") is not None:
                bars.setdefault(row["name"], row)
                if part == "timing":
                    ours.add(row["name"])
    rows = sorted(bars.values(), key=lambda row: row["ns_per_param"])
    figure, axes = plt.subplots(figsize=(7.2, 0.32 * len(rows) + 0.9))
    for y, row in enumerate(rows):
        picoseconds = 1e3 * row["ns_per_param"]
        axes.barh(y, picoseconds, 0.7, color="#1b6ca8" if row["name"] in ours else "#8a8a8a")
        axes.plot([row["bytes_ms"] / row["milliseconds"] * picoseconds] * 2, [y - 0.4, y + 0.4], "k-")
        axes.annotate(
            f"{picoseconds:.1f}",
            (picoseconds, y),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    names = [f"lowbit {row['name']}" if row["name"] in ours else row["name"] for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ps/param of a step; mark: its bytes at the rate of a copy", fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
