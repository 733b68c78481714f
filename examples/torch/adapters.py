#!/usr/bin/env python3
"""A byte-level transformer, trained and then adapted, with torch's AdamW and with 4-bit states.

The text is Python's own standard library. First the whole model learns its modules; then it is
frozen, and low-rank adapters (as in LoRA) learn another kind of text: the optimizer gets the
adapters alone. Both optimizers run from the same weights on the same batches.

    adapters.py [--steps 150]        some minutes on two cores; set LOWBIT_LIBRARY

Needs torch and nothing else.
"""

import argparse
import copy
import pathlib
import sys
import sysconfig

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bindings" / "python"))

from lowbit.torch import AdamW4bit

WIDTH, HEADS, LAYERS, CONTEXT, BATCH, RANK = 128, 4, 3, 64, 16, 40


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2).chunk(3, 1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, tokens):
        x = self.bytes(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.blocks(x))


class Adapted(nn.Module):
    """A frozen linear layer plus a product of two thin matrices that starts at zero."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(RANK, linear.in_features) / linear.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, x):
        return self.linear(x) + x @ self.a.T @ self.b.T


def adapt(model):
    """Freezes a model and puts adapters round the linear layers of its blocks."""
    model.requires_grad_(False)
    for block in model.blocks:
        for name in ("qkv", "out", "up", "down"):
            setattr(block, name, Adapted(getattr(block, name)))
    return model


def texts():
    """The bytes of the standard library's modules, and of its tables of character encodings."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    library = b"".join(path.read_bytes() for path in sorted(root.glob("*.py")))
    tables = b"".join(path.read_bytes() for path in sorted((root / "encodings").glob("*.py")))
    return [torch.frombuffer(bytearray(text), dtype=torch.uint8) for text in (library, tables)]


def batch(text, generator):
    starts = torch.randint(len(text) - CONTEXT - 1, (BATCH,), generator=generator)
    windows = torch.stack([text[i : i + CONTEXT + 1] for i in starts.tolist()]).long()
    return windows[:, :-1], windows[:, 1:]


def loss_of(model, pair):
    tokens, targets = pair
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def train(model, optimizer, text, steps):
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch(text, generator)).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def validate(model, text):
    generator = torch.Generator().manual_seed(1)
    return sum(loss_of(model, batch(text, generator)).item() for _ in range(10)) / 10


def bytes_per_parameter(optimizer):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    return sum(v.numel() * v.element_size() for v in states) / sum(p.numel() for p in params)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    library, tables = texts()
    cut = len(library) * 9 // 10, len(tables) * 9 // 10
    torch.manual_seed(0)
    start = Model()
    print("| optimizer | library: loss | B/param | tables: before | adapted | B/param |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, make in (("torch.optim.AdamW", torch.optim.AdamW), ("AdamW4bit", AdamW4bit)):
        model = copy.deepcopy(start)
        optimizer = make(model.parameters(), lr=1e-3)
        train(model, optimizer, library[: cut[0]], steps)
        row = [validate(model, library[cut[0] :]), bytes_per_parameter(optimizer)]
        row.append(validate(model, tables[cut[1] :]))
        torch.manual_seed(1)
        adapt(model)
        optimizer = make([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        train(model, optimizer, tables[: cut[1]], steps // 2)
        row += [validate(model, tables[cut[1] :]), bytes_per_parameter(optimizer)]
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)


if __name__ == "__main__":
    main()
