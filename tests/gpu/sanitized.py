"""What runs under compute-sanitizer: every call, a few times, on small tensors of odd shapes."""

import json

from lowbit import Spec

import inputs
from calls import Calls

SHAPES = ((70, 200), (3, 5, 130), (4097,), (100,), ())
SPECS = (
    "adamw4",
    "adamw4-block",
    "adamw4-robust",
    "adamw8",
    "adamw32",
    "factor4",
    "sm3",
    # Some calls want a momentum.
    {**json.loads(Spec("adafactor").json), "m": json.loads(Spec("adamw4").json)["m"]},
)


def main():
    random = inputs.Random(1)
    done = 0
    for spec in SPECS:
        for name in Calls.names:
            calls = Calls(random, spec, SHAPES)
            for _ in range(2):
                calls.enqueue(name)
                calls.expect(name)
            calls.require_same()
            done += 2
    # Factors of values.
    calls = Calls(random, "factor4", SHAPES)
    for name in ("compress", "average_into_state"):
        calls.enqueue(name, state_name="v")
        calls.expect(name, state_name="v")
        done += 1
    calls.require_same()
    print(f"worked: {done} calls equal the reference", flush=True)


if __name__ == "__main__":
    main()
