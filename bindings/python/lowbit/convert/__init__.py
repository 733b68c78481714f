"""Optimizer states of other packages, to and from lowbit's. Nothing here imports torch or JAX, but
for the functions that make their objects.

    checkpoint = torch.load("optimizer.pt", weights_only=True)      # or lowbit.convert.load
    shapes = {name: p.shape for name, p in model.named_parameters()}
    imported = lowbit.convert.from_torch(checkpoint, shapes)
    plan, state, report = lowbit.convert.to_lowbit(imported)        # or a spec: "adamw4", ...
    print(report)                                                   # what each state lost, if any
    plan.save("state.safetensors", state, imported.step)

Read: `torch.optim.Adam` and `AdamW`, torchao's AdamW in 4 bits, 8 bits and FP8, bitsandbytes' 8-bit
AdamW, lpmm (the authors' code of the paper) with block-wise, rank-1 and factored states, and
optax's Adam. All are written, too.

Without a spec the states are kept as they came: codes are copied with their scales and their table,
bit for bit, wherever the blocks of both sides fall on the same elements (theirs run across rows,
lowbit's end with a row: equal if rows are multiples of a block, or shorter than one). What does not
fit is quantized again, and the report says with which error. Where the source's levels differ from
the library's, if only by a last place, the spec has them as a table; `spec="adamw4-block"` takes
torchao's 4-bit codes too, with the library's levels.

All states are in memory at once, in f32.

From a shell: `python -m lowbit.convert --help`.
"""

from ._fit import Kept, Report, exact_spec, to_lowbit
from ._read import Imported, from_optax, from_torch, load
from ._write import to_bitsandbytes, to_lpmm, to_optax, to_torch, to_torchao

__all__ = [
    "Imported",
    "Kept",
    "Report",
    "exact_spec",
    "from_optax",
    "from_torch",
    "load",
    "to_bitsandbytes",
    "to_lowbit",
    "to_lpmm",
    "to_optax",
    "to_torch",
    "to_torchao",
]
