"""Measures one case with one number of threads, in this process. Started by `run.py`.

Round after round, every contestant takes one step, in an order drawn anew for each round, and in
between the memory itself is measured: so what slows the machine down for a while slows all down.
The results are written after each round, and a later process goes on from them.
"""

import json
import math
import os
import pathlib
import random
import resource
import sys
import time

# For OpenMP (torch, DeepSpeed, Inductor), and for XLA, which takes the cores that the process may
# use. They look when they are loaded, so this comes before the imports.
JOB = json.loads(sys.argv[1])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: JOB["threads"]])
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(JOB["threads"])

import torch  # noqa: E402

import cases  # noqa: E402
import contestants  # noqa: E402
from summary import COPY, IN_PLACE  # noqa: E402

WARM_UPS = 2


class Memory:
    """What the memory gives: `x *= a` and `x = y` over as much as the parameters are."""

    def __init__(self, operation, spare, grads):
        parts = spare.split([grad.numel() for grad in grads])
        if operation == COPY:
            self.step = lambda: [part.copy_(grad.view(-1)) for part, grad in zip(parts, grads)]
        else:
            self.step = lambda: spare.mul_(0.999)


def main():
    torch.set_num_threads(JOB["threads"])
    case = cases.cases(JOB["quick"])[JOB["case"]]
    wanted = {
        name: entry
        for name, entry in contestants.ENTRIES.items()
        if not JOB["only"] or any(part in name for part in JOB["only"])
    }
    result = load(case, wanted)
    if finished(result):
        return
    fill = Fill(case)
    running = {}
    for name, entry in wanted.items():
        info = result["contestants"].setdefault(name, {"slow": entry.slow})
        if reason := next((why for key, why in case.without.items() if name.startswith(key)), None):
            info["reason"] = reason
            continue
        try:
            running[name] = prepare(name, entry, info, fill)
        except Exception as error:
            # A peer that cannot be had here is a result, lowbit failing is not.
            if entry.peer == "lowbit":
                raise
            info["reason"] = explain(error)
            say(f"{name} does not run: {info['reason']}")
    if JOB["prepare"]:
        return
    spare = torch.ones(case.numel)
    grads = [p.grad for p in fill.params(torch.float32)]
    for operation in (IN_PLACE, COPY):
        memory = running[operation] = Memory(operation, spare, grads)
        memory.step()
    while len(result["rounds"]) < JOB["rounds"] and time.time() < JOB["deadline"]:
        round_of(result, running, case.numel)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    again = "" if finished(result) else ": run again to go on"
    say(f"{len(result['rounds'])} of {JOB['rounds']} rounds, at most {peak:.1f} GiB{again}")


class Fill:
    """Parameters and gradients of a case, one set for each dtype, made when first asked for."""

    def __init__(self, case):
        self._shapes = case.shapes
        self._made = {}

    def params(self, dtype):
        if dtype not in self._made:
            draw = torch.Generator().manual_seed(0)
            self._made[dtype] = [self._param(shape, dtype, draw) for shape in self._shapes]
        return self._made[dtype]

    @staticmethod
    def _param(shape, dtype, draw):
        param = torch.nn.Parameter((torch.randn(shape, generator=draw) / 50).to(dtype))
        param.grad = (torch.randn(shape, generator=draw) / 1000).to(dtype)
        return param


def prepare(name, entry, info, fill):
    """Makes a contestant, after a look at whether it does what it should, and warms it up."""
    start = time.perf_counter()
    if "error" not in info:
        error = contestants.check(entry)
        if not error <= entry.tolerance:
            raise AssertionError(f"ends {error:.2g} of the way off; {entry.tolerance} is allowed")
        info["error"] = error
    contestant = entry.make(fill.params(entry.dtype))
    corners = [p.detach().flatten()[[0, -1]] for p in contestant.params()]
    for _ in range(WARM_UPS):
        contestant.step()
    # A bf16 parameter need not change in one step.
    if entry.dtype == torch.float32:
        after = (p.detach().flatten()[[0, -1]] for p in contestant.params())
        if not all(bool((x != y).all()) for x, y in zip(corners, after)):
            raise AssertionError("a parameter did not change in the steps of the warm-up")
    info["state_bytes"] = contestant.state_bytes()
    # Parameter read and written, gradient read, states read and written.
    moved = 3 * torch.empty((), dtype=entry.dtype).nbytes
    numel = sum(p.numel() for p in contestant.params())
    info["bytes"] = moved * numel + 2 * info["state_bytes"]
    info["working_set"] = info["bytes"] - info["state_bytes"] - moved // 3 * numel
    say(f"{name}: error {info['error']:.1e}, ready in {time.perf_counter() - start:.1f} s")
    return contestant


def explain(error):
    """What went wrong, in a line: of a compiler's output the first error, else what came first."""
    texts = []
    while error:
        texts.append(f"{type(error).__name__}: {error}".replace(f"{sys.prefix}/", ""))
        error = error.__cause__
    lines = [line for text in texts for line in text.splitlines()]
    compiler = [line for line in lines if " error: " in line]
    causes = compiler[:1] or [text.splitlines()[0] for text in texts[:0:-1]][:1]
    return ": ".join([lines[0], *causes])[:300]


def round_of(result, running, numel):
    number = len(result["rounds"])
    # The slow ones take part in rounds that are spread over the run.
    every = math.ceil(JOB["rounds"] / JOB["slow_rounds"])
    names = [
        name
        for name in running
        if number % every == 0 or not result["contestants"].get(name, {}).get("slow")
    ]
    random.Random(number).shuffle(names)
    seconds, cores = {}, {}
    for name in names:
        # OpenMP's threads spin for a moment after their work.
        time.sleep(0.02)
        wall, busy = time.perf_counter(), time.process_time()
        running[name].step()
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        seconds[name], cores[name] = wall, busy / wall
    result["rounds"].append({"seconds": seconds, "cores": cores})
    save(result)
    shown = sorted(seconds, key=seconds.get)
    say(
        f"round {number + 1}/{JOB['rounds']}, ns/param: "
        + ", ".join(f"{name} {seconds[name] / numel * 1e9:.2f}" for name in shown)
    )


def load(case, wanted):
    """What an earlier process has measured, if it was of the same things on the same machine."""
    path = pathlib.Path(JOB["out"])
    settings = {
        key: JOB[key]
        for key in ("case", "threads", "quick", "rounds", "slow_rounds", "machine", "library")
    }
    settings["contestants"] = list(wanted)
    if path.exists():
        result = json.loads(path.read_text())
        if result["settings"] == settings:
            return result
        say("what was measured before was of another build, machine or setting: starting anew")
    sizes = {"title": case.title, "numel": case.numel, "tensors": len(case.shapes)}
    return {
        "settings": settings,
        "commit": JOB["commit"],
        **sizes,
        "contestants": {},
        "rounds": [],
    }


def finished(result):
    return len(result["rounds"]) >= JOB["rounds"]


def save(result):
    """Whole or not at all."""
    path = pathlib.Path(JOB["out"])
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(result, indent=1) + "\n")
    draft.replace(path)


def say(text):
    print(f"[{JOB['case']}, {JOB['threads']}t] {text}", flush=True)


if __name__ == "__main__":
    main()
