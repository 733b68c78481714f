"""The checks and measurements of one part, kept as JSON."""

import faulthandler
import hashlib
import json
import multiprocessing
import os
import pathlib
import platform
import queue
import secrets
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

#: The folder that the bundle, or a checkout, lies in.
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Report:
    """Collects what a part finds.

    seed: of the part's random numbers; the environment's LOWBIT_SEED repeats an earlier run.
    environment: what the part ran on and with, as names and texts.
    """

    def __init__(self, part):
        self.part = part
        self.seed = int(os.environ.get("LOWBIT_SEED") or secrets.randbits(32))
        self.environment = {"python": platform.python_version()}
        self.checks = []
        self.measurements = []

    @property
    def passed(self):
        """Whether there were checks and all of them passed."""
        return bool(self.checks) and all(check["passed"] for check in self.checks)

    def check(self, name, function, *arguments):
        """Calls a function; the check fails if that raises. What it returns is a detail to print.

        Returns whether the check passed.
        """
        found = attempt(function, *arguments)
        self._add(name, *found)
        return found[0]

    def check_all(self, checks, processes, seconds):
        """Checks as `check` does, but each in one of some processes and as they come.

        checks: a list of (name, function, arguments), which can be pickled.
        processes: how many; with 1 the checks run here, one after the other.
        seconds: a process that takes longer over a check ends, and the check has failed.
        """
        if processes == 1:
            for name, function, *arguments in checks:
                self.check(name, function, *arguments)
            return
        idle = queue.SimpleQueue()
        for _ in range(processes):
            idle.put(Worker())
        with ThreadPoolExecutor(processes) as threads:
            names = {
                threads.submit(attempt_by_next, idle, seconds, *call): name for name, *call in checks
            }
            for future in as_completed(names):
                self._add(names[future], *future.result())
        for _ in range(processes):
            idle.get().end()

    def fail(self, name, error):
        """Counts an exception outside the checks as a check that failed."""
        self._add(name, False, explain(error), 0.0)

    def _add(self, name, passed, detail, seconds):
        self.checks.append({"name": name, "passed": passed, "detail": detail, "seconds": seconds})
        print(f"{'passed' if passed else 'FAILED'}  {seconds:8.2f} s  {name}: {detail}", flush=True)

    def measure(self, name, **values):
        """Keeps the numbers of one row of the part's table."""
        self.measurements.append({"name": name, **values})

    def write(self, folder):
        """Writes <part>.json."""
        content = {
            "part": self.part,
            "passed": self.passed,
            "seed": self.seed,
            "environment": self.environment,
            "library": library(),
            "checks": self.checks,
            "measurements": self.measurements,
        }
        text = json.dumps(content, indent=2) + "\n"
        (pathlib.Path(folder) / f"{self.part}.json").write_text(text, encoding="utf-8")


def attempt(function, *arguments):
    """Whether a check passed, the detail to print, and the seconds that it took."""
    start = time.perf_counter()
    try:
        passed, detail = True, str(function(*arguments) or "")
    except Exception as error:
        passed, detail = False, explain(error)
    return passed, detail, time.perf_counter() - start


class Worker:
    """A process that does one check at a time, and is another one after each that failed: an error of
    CUDA lasts as long as its process."""

    def __init__(self):
        self._start()

    def _start(self):
        # CUDA does not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, mp_context=context)

    def attempt(self, seconds, *call):
        """As the function `attempt`."""
        start = time.perf_counter()
        try:
            found = self._process.submit(attempt_within, seconds, *call).result()
        except BrokenProcessPool:
            taken = time.perf_counter() - start
            found = False, f"its process has died, or was ended after {seconds} s", taken
        if not found[0]:
            self.end()
            self._start()
        return found

    def end(self):
        self._process.shutdown()


def attempt_by_next(idle, seconds, *call):
    worker = idle.get()
    try:
        return worker.attempt(seconds, *call)
    finally:
        idle.put(worker)


def attempt_within(seconds, *call):
    # Also where the process waits for a kernel without an end.
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        return attempt(*call)
    finally:
        faulthandler.cancel_dump_traceback_later()


def explain(error):
    """One line for the table; where an unforeseen error came from goes to standard error."""
    if isinstance(error, AssertionError):
        return str(error)
    traceback.print_exception(type(error), error, error.__traceback__)
    return f"{type(error).__name__}: {error}"


def library():
    """What is checked: the file, and the bundle's versions unless this is a checkout."""
    content = pathlib.Path(os.environ["LOWBIT_LIBRARY"]).read_bytes()
    found = {"sha256": hashlib.sha256(content).hexdigest()}
    manifest = ROOT / "manifest.txt"
    if manifest.is_file():
        lines = manifest.read_text(encoding="utf-8").splitlines()
        found.update(line.split(maxsplit=1) for line in lines)
    return found
