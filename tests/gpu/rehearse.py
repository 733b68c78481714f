"""Runs parts without a GPU: rehearse.py FOLDER PART... with the mock driver of tests/cuda on
LD_LIBRARY_PATH and the folder `rehearsal`, a torch of few functions, on PYTHONPATH.

The parts of lowbit.torch, `optimizers` and `finetune`, are rehearsed by a whole PyTorch on the CPU and
without the mock: with LOWBIT_REHEARSAL=cpu, and not this folder on PYTHONPATH.

Kernels run on the host, by the emulation of tests/cuda, on fewer and smaller tensors. So the code of
the parts has been run before a GPU's time is spent on it; times mean nothing here.
"""

import os
import sys

import summary
from report import Report


def not_rehearsed(*_):
    return "not rehearsed"


def parity():
    import parity

    parity.SHAPES = ((0,), (), (1,), (129,), (4097,), (30, 140))
    parity.CASE_SHAPES = ((1,), (4097,))
    parity.LARGE = (70, 1100)
    parity.SHARDS = ((30, 257), (4096,), (2, 3, 256))
    parity.STEPS = 2
    parity.DTYPES = ("bf16", "f16")
    parity.POLICIES = ("default", "skip_tensor")
    # A process of its own would know nothing of all this.
    parity.PROCESSES = 1
    # The hashes are of large tensors, and so is the other.
    parity.conformance = parity.beyond_32_bits = not_rehearsed
    return parity


def small_calls():
    from calls import Calls

    class SmallCalls(Calls):
        def __init__(self, random, spec="adamw4", shapes=((20, 210), (4097,), (100,))):
            super().__init__(random, spec, shapes)

    return SmallCalls


def streams():
    import streams

    streams.NUMELS = (4097, 100)
    # The mock does the work before it returns.
    streams.BUSY_MS = 1e9
    streams.Calls = small_calls()
    return streams


def allocations():
    import allocations

    allocations.Calls = small_calls()
    return allocations


def graph():
    import graph

    graph.SHAPES, graph.NUMELS = ((20, 210), (4097,), (100,)), (4200, 4097, 100)
    graph.DTYPES, graph.REPLAYS = ("bf16",), 4
    return graph


def small_timing():
    import timing

    timing.NUMEL, timing.MATRIX, timing.COPY_BYTES = 8448, (66, 128), 1 << 16
    timing.WARM_UP, timing.ROUNDS, timing.TAIL, timing.NEEDED_BYTES = 1, 2, 4352, 0
    return timing


def timing():
    timing = small_timing()
    host_time = timing.host_time
    timing.host_time = lambda count: host_time(min(count, 8), calls=2)
    return timing


def small_model():
    import model

    model.LAYERS, model.WIDTH, model.HIDDEN, model.VOCABULARY = 1, 128, 130, 64
    return model


def model():
    small_timing()
    model = small_model()
    model.NEEDED_BYTES = 0
    return model


def peers():
    import peers

    timing = small_timing()

    class StandIn(timing.Step):
        """The rehearsal's torch has no optimizers, and others' need a GPU."""

        def __init__(self, name, _, dtype):
            super().__init__("adamw32", dtype, dtype, name=name)

    peers.NEEDED_BYTES = 0
    peers.Peer, peers.PEERS = StandIn, (("a stand-in for a peer", None, "bf16"),)
    return peers


def offload():
    import offload

    return offload


def offload_timing():
    import offload_timing as timing

    timing.LAYERS, timing.WIDTH, timing.HEADS = 1, 128, 32
    timing.HIDDEN, timing.VOCABULARY = 130, 64
    timing.NEEDED_BYTES, timing.COPY_BYTES = 0, 1 << 16
    timing.WARM_UP, timing.ROUNDS = 1, 2
    return timing


def budget():
    import budget

    small_model()
    budget.NEEDED_BYTES = 0
    # Parameters and gradients take 1.06 MB, states of f32 as much.
    budget.LIMIT_BYTES = budget.torch.cuda.memory_allocated() + 1_600_000
    return budget


def sanitizer():
    """What runs under the tool, and whether the tool is there."""
    import sanitized
    import sanitizer

    sanitized.SHAPES = ((20, 210), (4097,), (100,), ())
    sanitized.SPECS = ("adamw4", *sanitized.SPECS[-3:])
    sanitizer.PROCESSES = 1
    sanitizer.sanitize = lambda binary, tool: sanitized.main() if tool == "memcheck" else "once"
    return sanitizer


def xla():
    """By JAX on the CPU."""
    import xla

    os.environ["LOWBIT_REHEARSAL"] = "cpu"
    xla.WAYS = {"on the CPU": ""}
    return xla


def optimizers():
    import optimizers

    return optimizers


def finetune():
    import finetune

    finetune.SIZES = {"WIDTH": 64, "HEADS": 2, "LAYERS": 1, "CONTEXT": 32, "BATCH": 8}
    finetune.PRETRAINING, finetune.STEPS, finetune.WARM_UP, finetune.LR = 30, 30, 2, 3e-3
    # The others are for a GPU.
    names = [name for name in finetune.OPTIMIZERS if not name.startswith(("bits", "torchao"))]
    finetune.OPTIMIZERS = {name: finetune.OPTIMIZERS[name] for name in names}
    return finetune


def main(folder, *parts):
    passed = True
    for part in parts:
        report = Report(part)
        print(f"==> rehearsal of {part} (LOWBIT_SEED={report.seed})", flush=True)
        try:
            globals()[part]().run(report)
        except Exception as error:
            report.fail("set-up", error)
        report.write(folder)
        passed = passed and report.passed
    summary.main(folder, *parts)
    return passed


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)
