"""Turns measurements into the committed results, the plot and the tables of the READMEs."""

import json
import pathlib
import re

import cases
import summary

HERE = pathlib.Path(__file__).parent
RESULTS = HERE.parent / "results"
BENCH_README = HERE.parent / "README.md"
README = HERE.parents[2] / "README.md"

MARKERS = re.compile(r"(<!-- cargo xtask peers -->\n).*?(\n<!-- end -->)", re.DOTALL)

#: The cases of the first page and of the plot, with short titles.
SHORT = {"llama": "100 M, LLaMA's shapes", "large": "one tensor of 268 M"}


def write(raw, publish):
    """raw: the folder of the measurements. publish: into the checkout, if nothing is missing;
    tables and plot otherwise go to the terminal and to `raw`."""
    results = load(raw)
    text = full(results)
    if publish and (missing := unfinished(results)):
        print(f"not published, as there are no {', '.join(missing)}")
        publish = False
    if not publish:
        print(text)
        plot(results, raw / "peers.svg")
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers.json").write_text(compact(list(results.values())))
    plot(results, RESULTS / "peers.svg")
    fill(BENCH_README, text)
    fill(README, first_page(results))


def load(raw):
    """(case, threads) -> result, in the order of the cases, of the build and machine that were
    measured last."""
    paths = [path for name in cases.cases() for path in sorted(raw.glob(f"{name}-*.json"))]
    found = {path: json.loads(path.read_text()) for path in paths}
    found = {path: result for path, result in found.items() if result["rounds"]}
    if not found:
        raise SystemExit(f"nothing is measured in {raw.name}")
    last = identity(found[max(found, key=lambda path: path.stat().st_mtime)])
    results = {}
    for path, result in found.items():
        if identity(result) == last:
            settings = result["settings"]
            results[settings["case"], settings["threads"]] = result
        else:
            print(f"{path.name} is of another build or machine: left out")
    return results


def identity(result):
    return [result["settings"][key] for key in ("machine", "library")]


def unfinished(results):
    wanted = [(case, threads) for case in cases.cases() for threads in (1, 2)]
    return [
        f"{case} on {threads} threads"
        for case, threads in wanted
        if (case, threads) not in results
        or len(results[case, threads]["rounds"]) < results[case, threads]["settings"]["rounds"]
    ]


def full(results):
    parts = [where(results)]
    for name in dict.fromkeys(case for case, _ in results):
        mine = {threads: r for (case, threads), r in results.items() if case == name}
        some = next(iter(mine.values()))
        title = f"### {name}: {some['title']} ({some['numel'] / 1e6:.1f} M parameters)"
        parts += [title, summary.case_table(mine)]
    parts += ["### Ratios of times", summary.ratio_table(results), accuracy(results)]
    return "\n\n".join(parts)


def where(results):
    """One sentence about machine and versions."""
    result = next(iter(results.values()))
    machine = result["settings"]["machine"]
    caches = ", ".join(f"{name} {size // 1024} KiB" for name, size in machine["caches"].items())
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    model = "/".join(map(str, machine["family, model, stepping"]))
    return (
        f"{machine['cores']} cores{' of a virtual machine' if machine['virtual'] else ''}, "
        f"{machine['cpu']} (family, model, stepping {model},"
        f" AVX-512 {'yes' if machine['avx512'] else 'no'}), {caches}, {machine['memory_gib']} GiB,"
        f" Linux {machine['kernel']}, huge pages {machine['huge_pages']}, Python"
        f" {machine['python']}, {packages}; lowbit at {result['commit']}."
    )


def accuracy(results):
    """How far each contestant ended from an exact AdamW in the check before the timing."""
    errors = {}
    for result in results.values():
        for name, info in result["contestants"].items():
            if "error" in info:
                errors[name] = info["error"]
    lines = [[name, f"{error:.1e}"] for name, error in errors.items()]
    head = "Distance from an f64 AdamW after 10 steps on 640 x 640, as a part of the way it went:"
    return f"{head}\n\n{summary.table(['', 'error'], lines)}"


def first_page(results):
    picture = "![Times per parameter](tests/bench/results/peers.svg)"
    return f"{summary.short_table(results, SHORT)}\n\n{picture}"


def plot(results, path):
    import plot as bars

    panels = []
    for case, title in SHORT.items():
        mine = {threads: r for (name, threads), r in results.items() if name == case}
        if not mine:
            continue
        names = next(iter(mine.values()))["contestants"]
        times = {
            name: {t: row["ns"] for t, r in mine.items() if (row := summary.row(r, name))}
            for name in names
        }
        panels.append((title, [(name, ns) for name, ns in times.items() if ns]))
    if panels:
        bars.draw(path, panels)


def compact(results):
    """JSON with a line for each round."""
    text = json.dumps(results, indent=1)
    inner = re.compile(r"\{[^{}]*\}")
    text = inner.sub(lambda found: " ".join(found[0].split()), text)
    return text + "\n"


def fill(path, text):
    old = path.read_text()
    new, count = MARKERS.subn(lambda found: f"{found[1]}\n{text}\n{found[2]}", old)
    if count != 1:
        raise SystemExit(f"{path.name} has {count} places for the tables of the peers, not one")
    path.write_text(new)
