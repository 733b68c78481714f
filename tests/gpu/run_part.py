"""Runs one part: run_part.py PART FOLDER writes FOLDER/PART.json; exit 1 unless all is well."""

import importlib
import signal
import sys

from report import Report


def main(part, folder):
    report = Report(part)
    # What was found until then is written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    print(f"==> {part} (LOWBIT_SEED={report.seed})", flush=True)
    try:
        # What a part imports may be missing here, which is to be said like any other failure.
        importlib.import_module(part).run(report)
    except SystemExit as error:
        report.fail("to the end", error)
    except Exception as error:
        report.fail("set-up", error)
    report.write(folder)
    return report.passed


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)
