"""A transformer learns Python's standard library and is then fine-tuned to another kind of text,
its tables of character encodings, from the same weights on the same batches, with torch's fused
AdamW, bitsandbytes' 8-bit, torchao's 4-bit, and ours: loss, time of a step, memory. 16 GiB of it.

The model and the texts are those of examples/torch/adapters.py, larger. LOWBIT_REHEARSAL=cpu:
without a GPU.
"""

import copy
import gc
import os
import sys
import time

import lowbit
import torch
from report import ROOT

sys.path.append(str(ROOT / "examples" / "torch"))

import adapters
from lowbit.torch import AdamW4bit

REHEARSAL = "LOWBIT_REHEARSAL" in os.environ
DEVICE = torch.device("cpu") if REHEARSAL else torch.device("cuda", 0)

#: 152 M parameters.
SIZES = {"WIDTH": 1024, "HEADS": 16, "LAYERS": 12, "CONTEXT": 512, "BATCH": 16}
PRETRAINING, STEPS, WARM_UP, LR = 300, 200, 20, 3e-4


def fused(params):
    return torch.optim.AdamW(params, lr=LR, fused=True)


def bitsandbytes(params):
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(params, lr=LR, weight_decay=0.01)


def torchao(params):
    import torchao.optim

    return torchao.optim.AdamW4bit(params, lr=LR, weight_decay=0.01)


OPTIMIZERS = {
    "torch AdamW(fused=True)": fused,
    "lowbit AdamW4bit": lambda params: AdamW4bit(params, lr=LR),
    "lowbit AdamW4bit, v in blocks": lambda params: AdamW4bit(params, lr=LR, v="block"),
    "bitsandbytes AdamW8bit": bitsandbytes,
    # Last, as what it compiles takes minutes.
    "torchao AdamW4bit": torchao,
}


def run(report):
    # As in peers.py: behind what is installed.
    if (ROOT / "packages").is_dir():
        sys.path.append(str(ROOT / "packages"))
    report.environment.update(
        lowbit=lowbit.version(),
        torch=torch.__version__,
        gpu="none: a rehearsal" if REHEARSAL else torch.cuda.get_device_name(DEVICE),
    )
    for name, value in SIZES.items():
        setattr(adapters, name, value)
    library, tables = (text.to(DEVICE) for text in adapters.texts())
    cut = len(tables) * 9 // 10
    torch.manual_seed(0)
    start = adapters.Model().to(DEVICE)
    train(start, fused(start.parameters()), library, PRETRAINING)
    start.zero_grad()
    before = validate(start, tables[cut:])
    report.measure(f"{sum(p.numel() for p in start.parameters()) / 1e6:.0f} M, before", loss=before)
    for name, make in OPTIMIZERS.items():
        # One that is missing or does not run leaves the others their measurement.
        report.check(f"{name} learns", learns, report, name, make, start, tables, cut, before)


def learns(report, name, make, start, tables, cut, before):
    model = copy.deepcopy(start)
    reset_peak()
    optimizer = make(model.parameters())
    milliseconds = train(model, optimizer, tables[:cut], STEPS)
    peak = peak_gigabytes()
    loss = validate(model, tables[cut:])
    report.measure(name, loss=loss, milliseconds=milliseconds, peak_gb=peak)
    if not loss < before:
        raise AssertionError(f"the loss went from {before} to {loss}")
    return f"loss {before:.4f} to {loss:.4f}"


def train(model, optimizer, text, steps):
    """Returns milliseconds of a step, forward, backward and optimizer, after the first ones."""
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        if step == min(WARM_UP, steps - 1):
            begin = seconds()
        optimizer.zero_grad()
        loss_of(model, text, generator).backward()
        optimizer.step()
    return 1e3 * (seconds() - begin) / max(1, steps - WARM_UP)


def loss_of(model, text, generator):
    with torch.autocast(DEVICE.type, torch.bfloat16):
        return adapters.loss_of(model, adapters.batch(text, generator))


@torch.no_grad()
def validate(model, text):
    generator = torch.Generator().manual_seed(1)
    return sum(loss_of(model, text, generator).item() for _ in range(20)) / 20


def seconds():
    if not REHEARSAL:
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak():
    # Nothing of the optimizer before counts, also where a cycle of references holds it.
    gc.collect()
    if not REHEARSAL:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(DEVICE)


def peak_gigabytes():
    return None if REHEARSAL else torch.cuda.max_memory_allocated(DEVICE) / 1e9
