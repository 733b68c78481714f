"""What is stepped: lists of tensor shapes, as data."""

import math
import random
from typing import NamedTuple

#: Peers that would take minutes per step there, and why; shown in the results.
_SLOW = {
    "torchao": "20 to 40 ns/param: too slow for this size",
    "bitsandbytes": "20 to 40 ns/param: too slow for this size",
}


class Case(NamedTuple):
    """title: for tables. shapes: of the tensors. without: peer -> why it does not take part."""

    title: str
    shapes: list
    without: dict = {}

    @property
    def numel(self):
        return sum(map(math.prod, self.shapes))


def llama(layers=12, dim=640, hidden=1728, vocabulary=32000):
    """A decoder of LLaMA's layout: embedding and head apart, SwiGLU, a norm before each part."""
    layer = [(dim, dim)] * 4 + [(hidden, dim)] * 2 + [(dim, hidden)] + [(dim,)] * 2
    return [(vocabulary, dim), *layer * layers, (dim,), (vocabulary, dim)]


def many(count=300, least=10_000, most=1_000_000, seed=0):
    """Matrices whose sizes are spread evenly on a logarithmic scale, in a seeded order."""
    draw = random.Random(seed)
    shapes = []
    for i in range(count):
        numel = least * (most / least) ** ((i + draw.random()) / count)
        columns = max(64, round(math.sqrt(numel) / 64) * 64)
        shapes.append((round(numel / columns), columns))
    draw.shuffle(shapes)
    return shapes


def cases(quick=False):
    """name -> Case. `quick` has the same kinds at about a sixteenth of the size."""
    side = 4 if quick else 1
    return {
        "llama": Case(
            "100 M parameters in LLaMA's shapes",
            llama(layers=1, vocabulary=3200) if quick else llama(),
        ),
        "one": Case("one tensor of 64 Mi", [(8192 // side, 8192 // side)]),
        "many": Case(
            "300 tensors of 10 k to 1 M",
            many(most=100_000) if quick else many(),
            {"torchao": "compiles each of 300 shapes anew, some seconds each"},
        ),
        "large": Case(
            "one tensor of 256 Mi",
            [(16384 // side, 16384 // side)],
            _SLOW
            | {
                "torch foreach": "temporaries as large as the tensor: left out for memory",
                "optax": "parameters of its own: left out for memory",
            },
        ),
    }
