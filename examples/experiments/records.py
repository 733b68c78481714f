"""Runs as lines of JSON: what was run, with what, and what came out.

A run's key is its experiment, arm, spec, seed, settings, data and device. A run that is on file is
not run again, so that a command that was stopped goes on where it was.
"""

import datetime
import fcntl
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time

import jax

import lowbit

FOLDER = pathlib.Path(__file__).parent / "results"


class Records:
    """The lines of one experiment, in `results/<experiment>.jsonl` or the folder given."""

    def __init__(self, experiment, folder=None):
        self.experiment = experiment
        self.path = pathlib.Path(folder or FOLDER) / f"{experiment}.jsonl"
        versions()  # as they are now: sources may change while runs go on

    def read(self):
        """All records: a list of dicts."""
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def run(self, key, function):
        """The record of this key: the one on file, else that of `function()`, put on file.

        key: a dict of arm, spec, seed, settings and data (a digest).
        function: returns a dict of results.
        """
        key = json.loads(json.dumps({"experiment": self.experiment, **key, "device": device()}))
        for record in self.read():
            if key.items() <= record.items():
                return record
        start, cpu = time.time(), time.process_time()
        result = function()
        record = {
            **key,
            "result": _plain(result),
            "seconds": round(time.time() - start, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as lines:
            fcntl.flock(lines, fcntl.LOCK_EX)
            lines.write(json.dumps(record) + "\n")
        return record


def _plain(value):
    """JSON has no infinity and no NaN: they are kept as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


@functools.cache
def versions():
    """What ran: the library and its commit, and what is beside it."""
    return {
        "lowbit": lowbit.version(),
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "numpy")},
        "machine": platform.machine(),
    }


def _commit():
    """That of the checkout, or of the bundle that the experiments were unpacked from."""
    here = pathlib.Path(__file__).parent
    git = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    manifest = here.parents[1] / "manifest.txt"
    if found.returncode and manifest.is_file():
        facts = dict(line.split(" ", 1) for line in manifest.read_text().splitlines())
        return facts["commit"][:12]
    return found.stdout.strip() or "unknown"


@functools.cache
def device():
    """What the runs are on: "cpu", or a GPU's name."""
    return jax.devices()[0].device_kind


def progress(label, steps):
    """Shows how far a run is on standard error, about every ten seconds."""
    shown = time.monotonic()

    def show(step, loss=None):
        nonlocal shown
        if step == steps or time.monotonic() - shown > 10:
            shown = time.monotonic()
            what = "" if loss is None else f", loss {loss:.4f}"
            print(f"{label}: step {step}/{steps}{what}", file=sys.stderr, flush=True)

    return show
