"""Times lowbit against the optimizers that others offer on a CPU; `../README.md` says how.

Each case and number of threads is measured in a process of its own. What is there already is not
measured again: the same command goes on where the last one stopped.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]


def arguments():
    # Neither needs a peer to be imported here: the processes are to start clean.
    import cases

    parser = argparse.ArgumentParser(prog="cargo xtask peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, 3 rounds: a rehearsal")
    parser.add_argument("--case", action="append", choices=cases.cases(), help="only this one")
    parser.add_argument("--threads", action="append", type=int, help="only this number")
    parser.add_argument(
        "--only", action="append", help="only contestants whose name has this; nothing is published"
    )
    parser.add_argument("--rounds", type=int, help="of the quick contestants (15)")
    parser.add_argument("--slow-rounds", type=int, help="of the slow ones (5)")
    parser.add_argument("--minutes", type=float, help="start no round after this time")
    parser.add_argument(
        "--prepare", action="store_true", help="only have the peers compile what they will run"
    )
    parser.add_argument("--report", action="store_true", help="only write the tables and the plot")
    given = parser.parse_args()
    given.case = given.case or list(cases.cases())
    given.threads = given.threads or [1, 2]
    given.rounds = given.rounds or (3 if given.quick else 15)
    given.slow_rounds = given.slow_rounds or (1 if given.quick else 5)
    return given


def main():
    given = arguments()
    kind = "quick" if given.quick else "full"
    raw = ROOT / "target/peers" / (kind if not given.only else "only")
    if not given.report:
        measure(given, raw)
    if given.prepare:
        return
    import report

    report.write(raw, publish=not given.quick and not given.only)


def measure(given, raw):
    import machine

    cores = len(os.sched_getaffinity(0))
    if max(given.threads) > cores:
        sys.exit(f"{max(given.threads)} threads are asked for; the process may use {cores} cores")
    job = {
        "quick": given.quick,
        "rounds": given.rounds,
        "slow_rounds": given.slow_rounds,
        "deadline": time.time() + 60 * given.minutes if given.minutes else 1e18,
        "prepare": given.prepare,
        "machine": machine.describe(),
        "library": machine.digest(os.environ["LOWBIT_LIBRARY"]),
        "commit": machine.commit(),
    }
    for case in given.case:
        for threads in given.threads:
            if time.time() > job["deadline"]:
                sys.exit("the time is over: run again to go on")
            out = raw / f"{case}-{threads}.json"
            job |= {"case": case, "threads": threads, "only": given.only, "out": str(out)}
            done = subprocess.run([sys.executable, HERE / "measure.py", json.dumps(job)])
            if done.returncode:
                sys.exit(f"{case} on {threads} threads ended with status {done.returncode}")


if __name__ == "__main__":
    main()
