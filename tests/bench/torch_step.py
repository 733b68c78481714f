#!/usr/bin/env python3
"""What a step of lowbit.torch costs beside the kernels: many small tensors, and one large one.

torch_step.py [--case small|large] [--params MILLIONS] [--rounds N] [--threads N]

The contestants alternate in one process, in the other order every second round. Ratios are of the
times of one round: their median, and in brackets the middle half of them. They are what to compare,
not the times. Set LOWBIT_LIBRARY.
"""

import argparse
import ctypes
import functools
import operator
import pathlib
import statistics
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bindings" / "python"))

import lowbit.torch as lt
from lowbit._library import call


def params_of(shapes):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape)
    return params


def times_of(contestants, rounds, repeats):
    """Seconds of one call of each contestant, a list of one for each round."""
    times = {name: [] for name in contestants}
    for step in contestants.values():
        for _ in range(3):
            step()
    for number in range(rounds):
        order = list(contestants.items())
        for name, step in order if number % 2 == 0 else reversed(order):
            begin = time.perf_counter()
            for _ in range(repeats):
                step()
            times[name].append((time.perf_counter() - begin) / repeats)
    return times


def quartiles(left, right):
    """Of the ratios of two contestants' times."""
    return statistics.quantiles(map(operator.truediv, left, right), n=4)


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
    times = times_of(steps, rounds, 5)
    print(f"300 tensors of 16 x 16, {torch.get_num_threads()} thread(s)")
    for name, values in times.items():
        low, middle, high = quartiles(values, times["torch fused"])
        microseconds = statistics.median(values) * 1e6
        print(
            f"  {microseconds:8.0f} us   {middle:5.2f} ({low:.2f} to {high:.2f}) of torch fused"
            f"   {name}"
        )


def large(millions, rounds):
    """One tensor: the optimizer's step beside the library's call alone, on the same memory."""
    rows = max(1, round(millions * 1e6 / 4096))
    print(f"one tensor of {rows * 4096 / 1e6:.0f} M, {torch.get_num_threads()} thread(s)")
    for spec in ("adamw4-block", "adamw4"):
        optimizer = lt.AdamW4bit(params_of([(rows, 4096)]), spec=spec)
        optimizer.step()
        ((batch, _),) = optimizer._stepper._batches
        # The library counts the steps itself.
        arguments = batch.plan.handle, ctypes.byref(batch._args), None
        kernel = functools.partial(call, "lowbit_step", *arguments)
        times = times_of({"step": optimizer.step, "kernel": kernel}, rounds, 1)
        low, middle, high = (ratio - 1 for ratio in quartiles(times["step"], times["kernel"]))
        milliseconds = statistics.median(times["kernel"]) * 1e3
        print(
            f"  {milliseconds:8.1f} ms   {middle:+.2%} ({low:+.2%} to {high:+.2%}) in"
            f" optimizer.step   {spec}"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=("small", "large"), help="only this one")
    parser.add_argument("--params", type=float, default=100.0, help="millions")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case != "large":
        small(arguments.rounds)
    if arguments.case != "small":
        large(arguments.params, arguments.rounds)


if __name__ == "__main__":
    main()
