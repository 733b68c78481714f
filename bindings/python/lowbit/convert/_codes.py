"""Codes as other packages keep them, and lowbit's layout of codes."""

import functools
import math
from typing import NamedTuple

import numpy as np


class Codes(NamedTuple):
    """Values as `levels[codes] * scale`, rounded once to f32.

    bits: of a code.
    levels: float32, increasing, at most 2^bits.
    codes: uint8, one for each element, flat, the last axis fastest.
    block: with it, each run of so many elements has one of `scales`, whatever the tensor's axes;
        None: `scales` is a vector for each axis, and an element's scale is the least of its axes'.
    scales: float32.
    """

    bits: int
    levels: np.ndarray
    codes: np.ndarray
    block: int | None
    scales: np.ndarray | tuple

    @classmethod
    def of(cls, bits, table, codes, block, scales):
        """From a table in any order, perhaps with a level twice (lpmm has one).

        Raises ValueError for a code beyond the table.
        """
        if codes.max(initial=0) >= len(table):
            raise ValueError(f"code {codes.max(initial=0)} of a table of {len(table)} levels")
        levels, positions = np.unique(np.asarray(table, np.float32), return_inverse=True)
        return cls(bits, levels, positions.astype(np.uint8)[codes.ravel()], block, scales)

    def decode(self, shape):
        """Raises ValueError unless codes and scales are those of a tensor of this shape."""
        numel = math.prod(shape)
        if self.codes.size != numel:
            raise ValueError(f"{self.codes.size} codes of {numel} elements")
        if self.block is None:
            fits, what = tuple(map(len, self.scales)) == shape, "its axes"
        else:
            fits = self.block > 0 and -(-numel // self.block) == self.scales.size
            what = f"blocks of {self.block}"
        if not fits:
            count = sum(map(np.size, self.scales))
            raise ValueError(f"{count} scales of shape {shape} do not fit {what}")
        values = self.levels[self.codes]
        if self.block is not None:
            return (values * np.repeat(self.scales, self.block)[: values.size]).reshape(shape)
        return values.reshape(shape) * functools.reduce(np.minimum, np.ix_(*self.scales))

    def describe(self):
        kind = "rank-1" if self.block is None else f"block({self.block})"
        return f"{self.bits}-bit {kind}"


class Factors(NamedTuple):
    """A second moment as the means of its last axis and of the axis before (lpmm)."""

    rows: np.ndarray
    columns: np.ndarray

    def decode(self):
        """r c / mean(r), in f64; 0 where all of a batch is."""
        rows, columns = self.rows.astype(np.float64), self.columns.astype(np.float64)
        mean = rows.mean(-1, keepdims=True)
        rows = np.divide(rows, mean, out=np.zeros_like(rows), where=mean != 0)
        return rows[..., :, None] * columns[..., None, :]

    def describe(self):
        return "factored"


def unpack(packed, bits, count, high_first=False):
    """Codes of 2 or 4 bits from bytes; the first in the lowest bits, or in the highest."""
    packed = packed.view(np.uint8).ravel()
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    if high_first:
        shifts = shifts[::-1]
    return (packed[:, None] >> shifts & np.uint8((1 << bits) - 1)).ravel()[:count]


# --- lowbit's layout -----------------------------------------------------------------------------


def rows_and_columns(numel, shape):
    """Of the block grid, given the shape of a codes or scales buffer."""
    rows = math.prod(shape[:-1])
    return rows, numel // max(rows, 1)


def codes_per_byte(columns, row_bytes):
    """1, 2 or 4; a row may end with a part of a byte."""
    return next((n for n in (1, 2, 4) if -(-columns // n) == row_bytes), None)


def pack_rows(codes, rows, columns, per_byte):
    """The bytes of a codes buffer, (rows, bytes)."""
    grid = codes.reshape(rows, columns)
    grid = np.pad(grid, ((0, 0), (0, -columns % per_byte))).reshape(rows, -1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(8 // per_byte)
    return np.bitwise_or.reduce(grid << shifts, axis=-1)


def unpack_rows(packed, columns):
    """The codes of a codes buffer, flat."""
    rows = packed.reshape(-1, packed.shape[-1])
    per_byte = codes_per_byte(columns, rows.shape[1])
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(8 // per_byte)
    codes = rows[..., None] >> shifts & np.uint8((1 << 8 // per_byte) - 1)
    return codes.reshape(len(rows), -1)[:, :columns].ravel()


def levels(plan, tensor, state, count):
    """The first `count` levels of a plan's table for a state of a tensor, by decoding every code
    under scales of 1."""
    numel = math.prod(plan.tensors[tensor].shape)
    found = []
    while sum(map(len, found)) < count:
        first = sum(map(len, found))
        found.append(_decode_run(plan, tensor, state, np.arange(first, first + numel) % count))
    return np.concatenate(found)[:count]


def _decode_run(plan, tensor, state, codes):
    arrays = plan.zeros()
    for info, array in zip(plan.buffers, arrays):
        if (info.tensor, info.state) != (tensor, state):
            continue
        if info.part == "codes":
            rows, columns = rows_and_columns(codes.size, info.shape)
            per_byte = codes_per_byte(columns, info.shape[-1])
            packed = pack_rows(codes.astype(np.uint8), rows, columns, per_byte)
            array[...] = packed.reshape(array.shape)
        else:
            array[...] = 1
    return plan.decompress(state, arrays)[tensor].ravel()
