"""Work on checkpoint files: what is in them, slices of them, other meshes of them.

A path leads to a checkpoint file or to an index of several. All writing replaces a file whole or not
at all. `lowbit.Error` is raised for what is not sound, or does not fit.
"""

import ctypes
import json
import os

import numpy as np

from ._library import call, callback

__all__ = ["describe", "merge", "split", "values", "write_index"]


def describe(path):
    """Step, spec, and tensors with the places of their shards, as a dict. Reads headers only."""
    path, needed = os.fsencode(path), ctypes.c_size_t()
    call("lowbit_checkpoint_json", path, None, 0, ctypes.byref(needed))
    text = ctypes.create_string_buffer(needed.value)
    call("lowbit_checkpoint_json", path, text, len(text), None)
    return json.loads(text.value)


def values(path, tensor, state, offset=None, shape=None):
    """The state `state` ("m", "v", "vmax" or "x") of a tensor, or the slice of it at `offset` with
    extents `shape`, as a float32 array. Only what the slice needs is read, so the checksums of the
    data are not compared."""
    if shape is None:
        found = [info["shape"] for info in describe(path)["tensors"] if info["name"] == tensor]
        if not found:
            raise KeyError(f"{os.fspath(path)} has no tensor {tensor!r}")
        offset = [0] * len(found[0]) if offset is None else offset
        shape = [extent - start for extent, start in zip(found[0], offset, strict=True)]
    offset = [0] * len(shape) if offset is None else offset
    if len(offset) != len(shape) or any(extent < 0 for extent in shape):
        raise ValueError(f"offset {offset} and shape {shape} are no slice")
    array = np.empty(shape, np.float32)
    axes = ctypes.c_int64 * len(shape)
    call(
        "lowbit_checkpoint_values",
        os.fsencode(path),
        tensor.encode(),
        state.encode(),
        axes(*offset),
        axes(*shape),
        len(shape),
        array.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        array.nbytes,
    )
    return array


def write_index(path, files):
    """Writes the index of files that lie in its folder, each with the shards of one process, once they
    are one complete checkpoint. It is the index that is then loaded."""
    names = (ctypes.c_char_p * len(files))(*map(os.fsencode, files))
    call("lowbit_checkpoint_index", names, len(files), os.fsencode(path))


def merge(source, path, *, progress=None):
    """Writes all tensors of a checkpoint, whole, into one file."""
    with callback(progress) as report:
        call("lowbit_checkpoint_merge", os.fsencode(source), os.fsencode(path), report, None)


def split(source, path, parts, axis=0, *, progress=None):
    """Cuts every tensor along `axis` into `parts`: a file for each, and their index at `path`."""
    source, path = os.fsencode(source), os.fsencode(path)
    with callback(progress) as report:
        call("lowbit_checkpoint_split", source, axis, parts, path, report, None)
