"""A second reader of lowbit checkpoints, written from include/CHECKPOINT.md alone.

    python3 reader.py FOLDER

verifies every checkpoint of a folder, decodes all states to f32, and compares their SHA-256 with
the lines `file tensor state sha256` of its values.txt. numpy and the standard library only.
"""

import hashlib
import json
import pathlib
import struct
import sys
import zlib

import numpy as np

DTYPES = {"F32": "<f4", "U16": "<u2", "U8": "u1", "I8": "i1"}
SUMS = "lowbit/crc32"


class Bad(Exception):
    """Not a sound checkpoint of format 1."""


def require(condition, text):
    if not condition:
        raise Bad(text)


def product(numbers):
    result = 1
    for number in numbers:
        result *= number
    return result


class Checkpoint:
    """One file, verified whole."""

    def __init__(self, path):
        data = pathlib.Path(path).read_bytes()
        require(len(data) >= 8, "too short")
        (length,) = struct.unpack("<Q", data[:8])
        require(length <= 100_000_000, "no safetensors file")
        start = 8 + length
        require(start <= len(data), "truncated header")
        header = json.loads(data[8:start])
        self.meta = json.loads(header.pop("__metadata__")["lowbit"])
        require(self.meta["format"] == 1, "another format")
        names = sorted(header, key=lambda name: header[name]["data_offsets"])
        names.remove(SUMS)
        names.append(SUMS)
        at, self.entries, sums = 0, {}, [zlib.crc32(data[:start])]
        for name in names:
            entry = header[name]
            first, end = entry["data_offsets"]
            dtype = np.dtype(DTYPES[entry["dtype"]])
            require(first == at and end - at == dtype.itemsize * product(entry["shape"]), name)
            require((start + first) % dtype.itemsize == 0, f"{name} is misaligned")
            part = data[start + first : start + end]
            require(len(part) == end - first, f"{name} is truncated")
            self.entries[name] = np.frombuffer(part, dtype).reshape(entry["shape"])
            sums.append(zlib.crc32(part))
            at = end
        require(start + at == len(data), "bytes follow")
        stored = self.entries.pop(SUMS).reshape(-1).view("<u4").tolist()
        require(stored == sums[:-1], "a checksum differs")

    def values(self, tensor, number):
        """State `number` of a tensor of the metadata, as f32 in the tensor's shape."""
        state, shape = tensor["states"][number], tensor["shape"]
        part = lambda name: self.entries[f"{tensor['name']}/{state['name']}/{name}"]
        # A vector along the tensor's axes, so that numpy spreads it over the others.
        spread = lambda vector: part(vector["part"]).reshape(
            [extent if axis in vector["axes"] else 1 for axis, extent in enumerate(shape)]
        )
        vectors = [spread(vector) for vector in state.get("vectors", [])]
        smallest = lambda: np.broadcast_to(
            np.minimum.reduce([np.broadcast_to(v, shape).view("<u4") for v in vectors]), shape
        ).view("<f4")
        if state["kind"] == "value":
            return part("value")
        if state["kind"] == "cover":
            return smallest()
        if state["kind"] == "factored":
            rows, columns, mean = vectors
            with np.errstate(all="ignore"):
                return np.where(mean == 0, np.float32(0), rows / mean * columns)
        require(state["kind"] == "codes", "an unknown kind")
        lead, row = shape[: tensor["row_axis"]], product(shape[tensor["row_axis"] :])
        each = 8 // state["width"]
        shifts = np.arange(each, dtype=np.uint8) * np.uint8(state["width"])
        codes = part("codes")[..., None] >> shifts & np.uint8((1 << state["width"]) - 1)
        codes = codes.reshape(*lead, -1)[..., :row]
        levels = np.array(self.meta["tables"][state["table"]], np.float32)
        levels = levels[np.minimum(codes, len(levels) - 1)]
        if "block" not in state:
            return levels.reshape(shape) * smallest()
        scales = np.repeat(part("scales"), state["block"], axis=-1)[..., :row]
        values = levels * scales
        if "dither" in state:
            values = values - self.dither(tensor, number, scales.reshape(-1, row))
        return values.reshape(shape)

    def dither(self, tensor, number, scales):
        state, lead = tensor["states"][number], tensor["row_axis"]
        offset, whole = tensor["offset"], tensor["global_shape"]
        start = 0
        for axis in range(lead, len(whole)):
            start += offset[axis] * product(whole[axis + 1 :])
        name = 0x811C9DC5
        for byte in tensor["name"].encode():
            name = (name ^ byte) * 0x01000193 & 0xFFFFFFFF
        seed = self.meta["spec"].get("seed", 0)
        key = [seed & 0xFFFFFFFF, seed >> 32]
        purpose = (8 + number) << 28 & 0xFFFFFFFF | name & 0x0FFFFFFF
        shift = np.zeros(scales.shape, np.float32)
        for i, index in enumerate(np.ndindex(*tensor["shape"][:lead])):
            row = 0
            for axis in range(lead):
                row = row * whole[axis] + offset[axis] + index[axis]
            for column in range(0, scales.shape[1], state["block"]):
                scale = scales[i, column]
                block = (start + column) // state["block"]
                word = philox([block, row, int(scale.view(np.uint32)), purpose], key)[0]
                u = np.float32(((word & 0xFFFF) + 0.5) / 65536) - np.float32(0.5)
                shift[i, column : column + state["block"]] = u * np.float32(state["dither"]) * scale
        return shift.reshape(*tensor["shape"][:lead], -1)


def philox(counter, key):
    """Philox4x32-10 (Salmon et al., SC 2011)."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = second >> 32 ^ b ^ k0, second & 0xFFFFFFFF
        c, d = first >> 32 ^ d ^ k1, first & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


def main(folder):
    folder = pathlib.Path(folder)
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        checkpoint = Checkpoint(path)
        for tensor in checkpoint.meta["tensors"]:
            for number, state in enumerate(tensor["states"]):
                values = np.asarray(checkpoint.values(tensor, number), "<f4")
                require(list(values.shape) == tensor["shape"], f"{path}: {values.shape}")
                digest = hashlib.sha256(values.tobytes()).hexdigest()
                found.append(f"{path.name} {tensor['name']} {state['name']} {digest}")
    expected = (folder / "values.txt").read_text().splitlines()
    wrong = sorted(set(found) ^ set(expected))
    for line in wrong:
        print("differs:", line)
    print(f"{len(found)} states of {folder}: {'differ' if wrong else 'as lowbit has them'}")
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
