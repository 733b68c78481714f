"""Converts an optimizer's state dict in a file of torch.save to a lowbit checkpoint."""

import argparse
import json
import pathlib

from .. import convert


def main():
    parser = argparse.ArgumentParser(prog="python -m lowbit.convert", description=__doc__)
    parser.add_argument("source", help="the file; it is read by torch.load with weights_only")
    parser.add_argument(
        "shapes",
        type=pathlib.Path,
        help="a JSON object of the parameters' names and shapes, in the optimizer's order:"
        ' {"wte": [50304, 768], ...}',
    )
    parser.add_argument("target", help="the checkpoint to write")
    parser.add_argument(
        "--spec", help="a preset or a spec's JSON form (default: as the states are)"
    )
    parser.add_argument("--step", type=int, help="steps done, if parameters differ in them")
    args = parser.parse_args()
    spec = args.spec
    if spec is not None and spec.lstrip().startswith("{"):
        spec = json.loads(spec)
    shapes = json.loads(args.shapes.read_text(encoding="utf-8"))
    imported = convert.from_torch(convert.load(args.source), shapes, step=args.step)
    plan, state, report = convert.to_lowbit(imported, spec)
    plan.save(args.target, state, imported.step)
    print(report)
    print(f"{imported.step} steps, {plan.state_bytes} bytes of state; the checkpoint's spec is")
    print(plan.spec.json)


if __name__ == "__main__":
    main()
