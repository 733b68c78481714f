#!/usr/bin/env python3
"""What a step of lowbit.torch costs beside the kernels: many small tensors, and one large one.

torch_step.py [--params MILLIONS] [--rounds N]

Ratios are of medians of rounds that alternate between the contestants in one process, on one
thread; they are what to compare, not the times. Set LOWBIT_LIBRARY.
"""

import argparse
import pathlib
import statistics
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bindings" / "python"))

import lowbit.torch as lt


def params_of(shapes):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape)
    return params


def medians(contestants, rounds, repeats):
    """Median seconds of one call of each, in alternating rounds."""
    times = {name: [] for name in contestants}
    for step in contestants.values():
        for _ in range(3):
            step()
    for _ in range(rounds):
        for name, step in contestants.items():
            begin = time.perf_counter()
            for _ in range(repeats):
                step()
            times[name].append((time.perf_counter() - begin) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def small(rounds):
    """300 tensors of 16 x 16: the time is all overhead."""
    shapes = [(16, 16)] * 300
    options = {
        "torch fused": lambda p: torch.optim.AdamW(p, fused=True),
        "torch foreach": lambda p: torch.optim.AdamW(p, foreach=True),
        "lowbit, as it comes (float32 below 4097 elements)": lt.AdamW4bit,
        "lowbit, 4 bits in blocks": lambda p: lt.AdamW4bit(p, v="block", threshold=0),
        "lowbit, 4 bits rank-1": lambda p: lt.AdamW4bit(p, threshold=0),
    }
    steps = {name: make(params_of(shapes)).step for name, make in options.items()}
    times = medians(steps, rounds, 5)
    print(f"300 tensors of 16 x 16, {torch.get_num_threads()} thread")
    for name, value in times.items():
        ratio = value / times["torch fused"]
        print(f"  {value * 1e6:8.0f} us   {ratio:5.2f} of torch fused   {name}")


def large(millions, rounds):
    """One tensor: the optimizer's step beside the library's call alone."""
    rows = max(1, round(millions * 1e6 / 4096))
    print(f"one tensor of {rows * 4096 / 1e6:.0f} M parameters")
    for spec in ("adamw4-block", "adamw4"):
        params = params_of([(rows, 4096)])
        optimizer = lt.AdamW4bit(params, spec=spec)
        optimizer.step()
        ((batch, _),) = optimizer._stepper._batches

        def kernel():
            batch.counter.add_(batch._one)
            batch._run()
            batch.counter.sub_(batch._one)

        times = medians({"step": optimizer.step, "kernel": kernel}, rounds, 1)
        share = times["step"] / times["kernel"] - 1
        print(f"  {times['kernel'] * 1e3:8.1f} ms   {share:+.2%} in optimizer.step   {spec}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--params", type=float, default=100.0, help="millions")
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    small(arguments.rounds)
    large(arguments.params, arguments.rounds)


if __name__ == "__main__":
    main()
