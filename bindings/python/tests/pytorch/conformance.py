#!/usr/bin/env python3
"""Prints the lines of tests/common/README.md, computed by the optimizers of lowbit.torch.

conformance.py                  print them
conformance.py FILE             also compare them with a file; exit 1 if there is a difference
"""

import hashlib
import json
import sys

import support  # first: it finds the others

import torch
from protocol import SHAPES, print_lines

import lowbit.torch


#: Whether torch takes gradients of another dtype than the parameter's; instead of the hash if not.
MIXED = hasattr(torch.Tensor, "grad_dtype")
UNSUPPORTED = "needs a newer torch"


def optimizer_of(spec, weights, params):
    """Made by the public constructor, with the hyper-parameters of all cases."""
    options = {"spec": spec, "weights": weights, "lr": 2**-10, "weight_decay": 0.01}
    options["maximize"] = spec.get("maximize", False)
    name = spec["optimizer"]
    if name in ("adamw", "adam"):
        options.update(betas=(0.9, 0.999), eps=1e-8, amsgrad=spec.get("amsgrad", False))
    elif name == "lion":
        options["betas"] = (0.9, 0.999)
    elif name == "sgdm":
        given = spec.get("sgdm", {})
        options["nesterov"] = given.get("nesterov", False)
        options["dampening"] = given.get("dampening", 0.0)
    elif name == "sm3":
        options["momentum"] = 0.9 if "m" in spec else 0.0
    elif name == "adafactor":
        given = spec.get("adafactor", {})
        options["beta2_decay"] = -given.get("decay_rate", 0.8)
        options["eps"] = (1e-8, given.get("eps2", 1e-3))
        options["d"] = given.get("clip_threshold", 1.0)
        options["momentum"] = 0.9 if "m" in spec else 0.0
        options["relative_step"] = given.get("relative_step", True)
        options["scale_parameter"] = given.get("scale_parameter", True)
    classes = {
        "adamw": lowbit.torch.AdamW4bit,
        "adam": lowbit.torch.Adam4bit,
        "sgdm": lowbit.torch.SGD4bit,
        "lion": lowbit.torch.Lion4bit,
        "adafactor": lowbit.torch.Adafactor,
        "sm3": lowbit.torch.SM3,
    }
    return classes[name](params, **options)


def line(case):
    """The line of a line of cases.txt."""
    name, param_dtype, grad_dtype, weights, steps, spec = case.split(" ")
    if grad_dtype != param_dtype and not MIXED:
        return f"{name} {UNSUPPORTED}"
    params = [support.param(i, shape, param_dtype) for i, shape in enumerate(SHAPES)]
    named = [(f"t{i}", param) for i, param in enumerate(params)]
    optimizer = optimizer_of(json.loads(spec), weights, named)
    for t in range(1, int(steps) + 1):
        for i, (param, shape) in enumerate(zip(params, SHAPES)):
            if grad_dtype != param_dtype:
                param.grad_dtype = support.DTYPES[grad_dtype]
            param.grad = support.grad(1000 * t + i, shape, grad_dtype)
        optimizer.step()
    digest = hashlib.sha256()
    for tensor in (*params, *support.state_tensors(optimizer)):
        digest.update(support.tensor_bytes(tensor))
    return f"{name} {digest.hexdigest()}"


if __name__ == "__main__":
    print_lines(line, sys.argv[1:])
