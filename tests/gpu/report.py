"""The checks and measurements of one part, kept as JSON."""

import hashlib
import json
import os
import pathlib
import platform
import secrets
import time
import traceback

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
        start = time.perf_counter()
        try:
            passed, detail = True, str(function(*arguments) or "")
        except Exception as error:
            passed, detail = False, explain(error)
        self._add(name, passed, detail, time.perf_counter() - start)
        return passed

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
