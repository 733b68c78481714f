"""Imported states in the layout of a lowbit plan: codes copied where both sides mean the same by
them, else quantized again."""

import collections
import functools
import math
from typing import NamedTuple

import numpy as np

from .. import core
from . import _codes
from ._codes import Factors

#: Copied codes may decode to this much else (relative): a table that is one last place off.
_SAME = 2.0**-21


class Kept(NamedTuple):
    """What became of one state of one tensor.

    source: what it was.
    how: "copied" (the codes, scales or factors), "quantized", "f32", or "dropped": the spec has no
        such state.
    exact: every value decodes to the same bits as at the source.
    error: root of the mean square error over root of the mean square.
    largest: largest error over largest magnitude.
    """

    tensor: str
    state: str
    source: str
    how: str
    exact: bool
    error: float
    largest: float


class Report(tuple):
    """A tuple of Kept; its text is a table."""

    @property
    def exact(self):
        """Whether nothing was lost."""
        return all(kept.exact for kept in self)

    def __str__(self):
        rows = [("tensor", "state", "source", "kept", "rms error", "largest error")]
        for kept in self:
            errors = ("exact", "") if kept.exact else (f"{kept.error:.2e}", f"{kept.largest:.2e}")
            rows.append((kept.tensor, kept.state, kept.source, kept.how, *errors))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join(lines)


def to_lowbit(imported, spec=None, *, threads=1):
    """Imported states as those of a lowbit plan.

    imported: what `from_torch` or `from_optax` returned.
    spec: of the plan, as `lowbit.Spec` takes it. None: `exact_spec(imported)`.

    Returns the plan, its state arrays and a Report. The number of steps done is `imported.step`,
    and the plan's groups are those of the source.
    """
    tensors = [
        core.Tensor(name, shape, group=imported.group_of.get(name, 0))
        for name, shape in imported.shapes.items()
    ]
    plan = core.Plan(exact_spec(imported) if spec is None else spec, tensors, threads=threads)
    state = plan.zeros()
    kept = {}
    for name in dict.fromkeys(info.state for info in plan.buffers):
        kept |= _fill(plan, state, name, imported.moments)
    for (tensor, name), moment in imported.moments.items():
        dropped = Kept(tensor, name, moment.source, "dropped", False, 1.0, 1.0)
        kept.setdefault((tensor, name), dropped)
    places = {name: place for place, name in enumerate(imported.shapes)}
    order = sorted(kept, key=lambda key: (places[key[0]], key[1]))
    return plan, state, Report(kept[key] for key in order)


def _fill(plan, state, name, moments):
    """Fills one state of all tensors; returns what became of each."""
    sources = [moments.get((tensor.name, name)) for tensor in plan.tensors]
    values = [
        np.zeros(tensor.shape, np.float32) if source is None else _f32(source.values)
        for tensor, source in zip(plan.tensors, sources)
    ]
    plan.compress(name, values, state)
    parts = [{} for _ in plan.tensors]
    for info, array in zip(plan.buffers, state):
        if info.state == name:
            parts[info.tensor][info.part] = array
    quantized = [{part: array.copy() for part, array in of.items()} for of in parts]
    copied = {
        i
        for i, source in enumerate(sources)
        if source is not None and source.coded is not None and _copy(source, parts[i])
    }
    for i, decoded in enumerate(plan.decompress(name, state)):
        if i in copied and not _same(decoded, values[i], sources[i]):
            copied.discard(i)
            for part, array in quantized[i].items():
                parts[i][part][...] = array
    report = {}
    for i, decoded in enumerate(plan.decompress(name, state)):
        if sources[i] is not None:
            how = "copied" if i in copied else "f32" if "value" in parts[i] else "quantized"
            tensor = plan.tensors[i].name
            report[tensor, name] = Kept(
                tensor, name, sources[i].source, how, *_errors(decoded, sources[i].values)
            )
    return report


def _f32(values):
    return np.ascontiguousarray(values, np.float32)


def _same(decoded, values, source):
    # Factors decode by another order of operations here and there.
    bound = 2.0**-20 if isinstance(source.coded, Factors) else _SAME
    return bool(np.all(np.abs(decoded - values) <= bound * np.abs(values)))


def _errors(decoded, values):
    values = values.astype(np.float64)
    off = decoded - values
    exact = decoded.astype(np.float64).tobytes() == values.tobytes()
    mean, largest = np.sqrt(np.mean(values**2)), np.abs(values).max(initial=0)
    if not largest:
        return exact, float(np.abs(off).max(initial=0)), float(np.abs(off).max(initial=0))
    error = np.sqrt(np.mean(off**2)) / mean
    return exact, float(error), float(np.abs(off).max() / largest)


def _copy(source, parts):
    """Writes codes with their scales, or factors, into the buffers of one state if they have a
    place there. Whether the codes mean the same to the plan's table is seen by decoding them."""
    coded = source.coded
    if isinstance(coded, Factors):
        if set(parts) != {"rows", "columns", "mean"}:
            return False
        mean = coded.rows.astype(np.float64).mean(-1)
        found = {"rows": coded.rows, "columns": coded.columns, "mean": mean}
        if any(parts[part].shape != array.shape for part, array in found.items()):
            return False
        for part, array in found.items():
            parts[part][...] = array
        return True
    if "codes" not in parts:
        return False
    rows, columns = _codes.rows_and_columns(coded.codes.size, parts["codes"].shape)
    per_byte = _codes.codes_per_byte(columns, parts["codes"].shape[-1])
    scales = _place_scales(coded, parts, rows, columns)
    if scales is None or int(coded.codes.max(initial=0)) >> (8 // per_byte):
        return False
    packed = _codes.pack_rows(coded.codes, rows, columns, per_byte)
    parts["codes"][...] = packed.reshape(parts["codes"].shape)
    for part, array in scales.items():
        parts[part][...] = array.reshape(parts[part].shape)
    return True


def _place_scales(coded, parts, rows, columns):
    """The scales by part, or None where they have no place."""
    if coded.block is None:
        found = {f"axis{axis}": scales for axis, scales in enumerate(coded.scales)}
    elif "maximum" in parts and coded.scales.size == 1:
        found = {"maximum": coded.scales}
    elif "scales" in parts and (rows == 1 or columns % coded.block == 0):
        found = {"scales": coded.scales}
    else:
        return None
    if set(found) != set(parts) - {"codes"}:
        return None
    if any(parts[part].size != array.size for part, array in found.items()):
        return None
    return found


# --- a spec that keeps states as they came -------------------------------------------------------


def exact_spec(imported):
    """The JSON form, as a dict, of a spec for AdamW under which every state keeps the bits, blocks
    and table that it came with. For Adam: `{**exact_spec(imported), "optimizer": "adam"}`."""
    states = ("m", "v")
    wanted = {
        name: tuple(_quantizer(imported.moments.get((name, state)), state) for state in states)
        for name in imported.shapes
    }
    numel = {name: math.prod(shape) for name, shape in imported.shapes.items()}
    plain = (_F32, _F32)
    coded = {name: pair for name, pair in wanted.items() if pair != plain}
    counts = collections.Counter(map(_key, coded.values()))
    base = max(coded.values(), key=lambda pair: counts[_key(pair)], default=plain)
    threshold = min((numel[name] for name in coded), default=1) - 1
    overrides = [
        {"match": _pattern(name), **dict(zip(states, pair))}
        for name, pair in wanted.items()
        if pair != (plain if numel[name] <= threshold else base)
    ]
    spec = {"optimizer": "adamw", "threshold": threshold, **dict(zip(states, base))}
    if any(state == "vmax" for _, state in imported.moments):
        spec["amsgrad"] = True
    if overrides:
        spec["overrides"] = overrides
    return spec


_F32 = {"bits": 32}


def _key(pair):
    return repr(pair)


def _quantizer(moment, state):
    """The JSON form of what a state came with."""
    coded = None if moment is None else moment.coded
    if coded is None:
        return _F32
    if isinstance(coded, Factors):
        return {"bits": 32, "normalization": "factored", "factor_axes": "last_two"}
    if coded.block is None:
        quantizer = {"normalization": "rank1"}
    elif coded.block == coded.codes.size and coded.scales.size == 1:
        quantizer = {"normalization": "tensor"}
    else:
        # Only powers of two exist.
        block = min(max(1 << coded.block.bit_length() - 1, 32), 4096)
        quantizer = {"normalization": "block", "block": block}
    for mapping in _MAPPINGS[state]:
        table = _table(mapping, coded.bits, state)
        if table is not None and np.array_equal(table[: len(coded.levels)], coded.levels):
            return {"bits": coded.bits, **quantizer, "mapping": mapping}
    levels = [float(level) for level in coded.levels]
    return {"bits": coded.bits, **quantizer, "mapping": "table", "levels": levels}


#: Those that other packages have.
_MAPPINGS = {"m": ("de", "linear", "nf4"), "v": ("de", "de0", "linear", "power2", "power3")}


@functools.cache
def _table(mapping, bits, state):
    """The library's table; None if there is none."""
    quantizer = {"bits": bits, "normalization": "tensor", "mapping": mapping}
    spec = {"optimizer": "adamw", "threshold": 0, "m": _F32, "v": _F32, state: quantizer}
    if mapping == "nf4" and bits != 4:
        return None
    plan = core.Plan(spec, [core.Tensor("table", (1 << bits,))])
    return _codes.levels(plan, 0, state, 1 << bits)


def _pattern(name):
    """A shell pattern that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[]" else c for c in name)
