"""JAX on the GPU: jit, donation, scan, and command buffers on and off give the reference's bits.

Options of XLA are read when it starts, so each way runs in a process of its own, `xla_steps.py`.
"""

import json
import os
import pathlib
import subprocess
import sys

#: Ways to run: name -> options of XLA.
WAYS = {
    "as JAX does by default": "",
    "without command buffers": "--xla_gpu_enable_command_buffer=",
    "with command buffers": "--xla_gpu_enable_command_buffer=FUSION,CUSTOM_CALL"
    " --xla_gpu_graph_min_graph_size=1",
}
SECONDS = 250


def run(report):
    for way, options in WAYS.items():
        report.check(f"JAX {way}", steps, report, way, options)


def steps(report, way, options):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {options}".strip(),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "LOWBIT_SEED": str(report.seed),
    }
    done = subprocess.run(
        [sys.executable, str(pathlib.Path(__file__).with_name("xla_steps.py"))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(
            f"exit status {done.returncode}: " + " | ".join(done.stderr.splitlines()[-12:])
        )
    result = json.loads(done.stdout.splitlines()[-1])
    report.environment.update(result.pop("environment"))
    for name, microseconds in result.pop("microseconds").items():
        report.measure(f"JAX {way}: {name}, one step", milliseconds=microseconds / 1e3)
    return "; ".join(f"{key} {value}" for key, value in result.items())
