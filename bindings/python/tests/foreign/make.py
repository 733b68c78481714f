"""Writes the files of this folder with the packages that the states come from.

    target/env/peers/bin/python bindings/python/tests/foreign/make.py       # after `cargo xtask peers`

For each optimizer three steps are taken on three small tensors, and two files are written:

    NAME.pt     the optimizer's state dict, as `torch.save` writes it
    NAME.npz    the same tensors for readers without torch: "<param>/<key>", and for a quantized
                state of torchao "<param>/<key>/<attribute>"; and what the package itself decodes
                quantized states to, "decoded/<param>/<key>"

lpmm (the paper's code) is a CUDA extension and does not install without a CUDA toolkit. `lpmm.npz`
is written by its published layout: what is below follows `lpmm/functional.py` and
`lpmm/cpp_extension/quantization_kernel.cu` at 9033157 for real-nearest rounding, in numpy.
"""

import pathlib

import bitsandbytes
import numpy as np
import torch
import torchao.optim

HERE = pathlib.Path(__file__).parent

#: "w" fits everybody's blocks, and has rows of whole blocks; "odd" leaves a short block at its end;
#: "b" is below every threshold.
SHAPES = {"w": (8, 768), "odd": (17, 245), "b": (10,)}

#: For states in f32.
SMALL = {"w": (6, 40), "odd": (3, 5, 7), "b": (10,)}

STEPS = 3


def parameters(shapes):
    random = np.random.default_rng(0)
    values = [random.normal(size=shape) for shape in shapes.values()]
    return [torch.nn.Parameter(torch.tensor(value, dtype=torch.float32)) for value in values]


def train(optimizer, params):
    random = np.random.default_rng(1)
    for _ in range(STEPS):
        for p in params:
            scale = 10.0 ** random.uniform(-4, 0, size=(p.shape[0],) + (1,) * (p.ndim - 1))
            p.grad = torch.tensor(random.normal(size=p.shape) * scale, dtype=torch.float32)
        optimizer.step()
    return optimizer.state_dict()


def entries(state_dict):
    """The state dict's tensors by name, with what torchao's decode to."""
    found = {}
    for index, state in state_dict["state"].items():
        name = list(SHAPES)[index]
        flat = {**state, **state.get("__bnb_optimizer_quant_state__", {})}
        for key, value in flat.items():
            if type(value).__name__.startswith("OptimState"):
                for attribute in value.tensor_attrs:
                    part = getattr(value, attribute)
                    part = part.float() if part.is_floating_point() else part
                    found[f"{name}/{key}/{attribute}"] = part.numpy()
                found[f"decoded/{name}/{key}"] = value.dequantize().numpy()
            elif key != "__bnb_optimizer_quant_state__":
                found[f"{name}/{key}"] = np.asarray(value)
        for i, key in ((1, "state1"), (2, "state2")):
            if f"absmax{i}" in flat:
                decoded = bitsandbytes.functional.dequantize_blockwise(
                    flat[key].flatten(),
                    absmax=flat[f"absmax{i}"],
                    code=flat[f"qmap{i}"],
                    blocksize=256,
                )
                found[f"decoded/{name}/{key}"] = decoded.numpy().reshape(flat[key].shape)
    return found


def write(name, found):
    arrays = {key: np.ascontiguousarray(value) for key, value in sorted(found.items())}
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


def make(name, create, shapes=SHAPES):
    params = parameters(shapes)
    state_dict = train(create(params), params)
    torch.save(state_dict, HERE / f"{name}.pt")
    write(name, entries(state_dict))


# --- lpmm ----------------------------------------------------------------------------------------


def lpmm_codes(normalized, table):
    """4-bit codes: nearest, ties to the lower level."""
    middles = ((table[:-1] + table[1:]) * np.float32(0.5)).astype(np.float32)
    codes = np.searchsorted(middles, normalized.ravel(), side="left")
    return np.where(normalized.ravel() <= table[0], 0, codes).astype(np.uint8)


def lpmm_pack(codes):
    """In groups of 2048, the even element in the low nibble, one byte more than needed."""
    codes = np.pad(codes, (0, -codes.size % 2048))
    return np.append(codes[::2] | codes[1::2] << 4, np.uint8(0)).view(np.int8)


def lpmm_state(x, table, size=None):
    """A quantized state, its qstate's entries, and what it decodes to; in groups or rank-1."""
    if size is None:
        maxima = [x.max(axis=1, keepdims=True), x.max(axis=0, keepdims=True)]
        scale = np.minimum(*maxima)
        overhead = {f"max_dims/{i}": maximum for i, maximum in enumerate(maxima)}
    else:
        shape, x = x.shape, np.pad(x.ravel(), (0, -x.size % size)).reshape(-1, size)
        scale = np.abs(x).max(axis=1, keepdims=True)
        overhead = {"max1": scale}
    codes = lpmm_codes(np.float32(x / scale), table)
    decoded = table[codes].reshape(x.shape) * scale
    if size is not None:
        decoded = decoded.ravel()[: np.prod(shape)].reshape(shape)
    overhead["scaled_shape"] = np.int64(x.shape)
    return (
        lpmm_pack(codes),
        {"qmap": table, **{f"overhead/{k}": v for k, v in overhead.items()}},
        decoded,
    )


def lpmm():
    """m: 4 bits in groups of 128 under the signed map; v: rank-1 and linear ("w"), 4 bits in groups
    of 128 ("odd"), factored ("f"); f32 ("b")."""
    signed = np.float32(torchao.optim.subclass_4bit.get_qmap_signed())
    linear = np.linspace(0, 1, 17, dtype=np.float32)[1:]
    found = {}
    random = np.random.default_rng(2)
    for name, shape in {**SHAPES, "f": (9, 512)}.items():
        rows = (shape[0],) + (1,) * (len(shape) - 1)
        m = np.float32(random.normal(size=shape) * 10.0 ** random.uniform(-4, 0, size=rows))
        v = m * m
        found[f"{name}/step"] = np.float32(STEPS)
        if name == "b":
            found |= {f"{name}/exp_avg": m, f"{name}/exp_avg_sq": v}
            found |= {
                f"{name}/exp_avg_qstate/qmap": signed,
                f"{name}/exp_avg_sq_qstate/qmap": linear,
            }
            continue
        states = [("exp_avg", m, signed, 128)]
        if name == "f":
            found |= {f"{name}/exp_avg_sq_row": v.mean(-1), f"{name}/exp_avg_sq_col": v.mean(-2)}
        else:
            states.append(("exp_avg_sq", v, linear, 128 if name == "odd" else None))
        for key, x, table, size in states:
            codes, qstate, decoded = lpmm_state(x, table, size)
            found[f"{name}/{key}"] = codes
            found |= {f"{name}/{key}_qstate/{part}": array for part, array in qstate.items()}
            found[f"decoded/{name}/{key}"] = decoded
    write("lpmm", found)


if __name__ == "__main__":
    make("torch", torch.optim.AdamW, SMALL)
    make("amsgrad", lambda params: torch.optim.Adam(params, amsgrad=True), SMALL)
    make("torchao4", torchao.optim.AdamW4bit)
    make("torchao8", torchao.optim.AdamW8bit)
    make("torchao-fp8", torchao.optim.AdamWFp8)
    make("bitsandbytes", bitsandbytes.optim.AdamW8bit)
    lpmm()
