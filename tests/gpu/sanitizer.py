"""compute-sanitizer over every call on small tensors: memory errors, races, uninitialized reads, misuse
of barriers. The program is LOWBIT_SANITIZER, the machine's, or the bundle's."""

import glob
import os
import pathlib
import shutil
import subprocess
import sys

from report import ROOT

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: They wait for each other's kernels, but mostly work on the host.
PROCESSES = len(TOOLS)
SECONDS = 150


def run(report):
    found = []
    if not report.check("compute-sanitizer is there", find, found):
        return
    (binary,) = found
    report.check_all([(tool, sanitize, binary, tool) for tool in TOOLS], PROCESSES, SECONDS + 10)


def find(found):
    given = os.environ.get("LOWBIT_SANITIZER")
    installed = sorted(glob.glob("/usr/local/cuda*/bin/compute-sanitizer"))
    places = [
        given,
        shutil.which("compute-sanitizer"),
        *installed,
        str(ROOT / "sanitizer/compute-sanitizer"),
    ]
    for place in filter(None, places):
        if pathlib.Path(place).is_file():
            found.append(place)
            done = subprocess.run([place, "--version"], capture_output=True, text=True, check=True)
            return f"{place}: {done.stdout.strip().splitlines()[-1]}"
    raise AssertionError(
        "no compute-sanitizer: LOWBIT_SANITIZER is not set, and it is neither on PATH, nor in"
        " /usr/local/cuda*/bin, nor in the bundle"
    )


def sanitize(binary, tool):
    """Runs sanitized.py under a tool, which must find nothing in it."""
    # What torch asks of the driver is not the question.
    options = ["--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
    if tool != "initcheck":
        # That one has to see what torch's kernels write.
        options += ["--kernel-name", "kernel_substring=lowbit_k_"]
    if tool == "memcheck":
        options += ["--padding", "256"]
    done = subprocess.run(
        [binary, *options, sys.executable, str(pathlib.Path(__file__).with_name("sanitized.py"))],
        # Each tensor an allocation of its own, so that what lies behind it is known.
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode != 0:
        raise AssertionError(f"exit status {done.returncode}: " + " | ".join(lines[-40:]))
    summary = [line for line in lines if "SUMMARY" in line]
    worked = [line for line in lines if line.startswith("worked: ")]
    if not summary or not worked:
        raise AssertionError("it did not say what it found: " + " | ".join(lines[-10:]))
    return f"{summary[-1].strip('= ')}; {worked[-1]}"
