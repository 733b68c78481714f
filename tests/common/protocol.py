"""What README.md of this folder says, for tests in Python: numbers, cases, and the programs around them.

Arrays are numpy's and flat; one of bf16 or f16 is one of uint16.
"""

import contextlib
import io
import os
import pathlib
import re
import sys
import tempfile

import numpy as np

SHAPES = ((1,), (4096,), (4097,), (300, 257), (64, 3, 3, 3), (512, 1024), (2, 3, 5, 7, 11))

_CASES = pathlib.Path(__file__).resolve().with_name("cases.txt")


def encode(values, dtype):
    """f32, or bf16 or f16 by truncation; what is too large for f16 becomes infinity."""
    bits = values.view(np.uint32)
    if dtype == "f32":
        return values
    if dtype == "bf16":
        return (bits >> 16).astype(np.uint16)
    sign, exponent, fraction = bits >> 31 << 15, bits >> 23 & 0xFF, bits >> 13 & 0x3FF
    conditions = [np.isnan(values), exponent >= 143, exponent >= 113]
    choices = [np.uint32(0x7E00), np.uint32(0x7C00), exponent - 112 << 10 | fraction]
    return (sign | np.select(conditions, choices, np.uint32(0))).astype(np.uint16)


def _word(stream, index):
    with np.errstate(over="ignore"):
        x = np.uint64(stream << 40) + index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _number(h, exponent):
    n = (h >> np.uint64(40)).astype(np.int64) - (1 << 23)
    return np.ldexp(n.astype(np.float64), exponent).astype(np.float32)


def param(stream, numel, dtype="f32"):
    """A parameter."""
    return encode(_number(_word(stream, np.arange(numel)), -27), dtype)


def grad(stream, numel, dtype="f32"):
    """A gradient."""
    index = np.arange(numel)
    h = _word(stream, index)
    values = _number(h, -23 - (h & np.uint64(15)).astype(np.int64))
    values[index // 512 % 5 == 4] = 0
    return encode(values, dtype)


def lines(line):
    """The lines of all cases.

    line: what is printed for a line of cases.txt.
    """
    return [line(case) for case in _CASES.read_text(encoding="utf-8").splitlines()]


def print_lines(line, arguments):
    """The program that prints the lines of all cases, and compares them with the files it is given."""
    found = lines(line)
    print("\n".join(found))
    for file in arguments:
        if found != pathlib.Path(file).read_text(encoding="utf-8").splitlines():
            sys.exit(f"these are not the lines of {file}")


def hand_over(continued, write, arguments, usage):
    """The program that continues a trainer of another language and compares the hash, or, with
    `--write`, leaves a trainer.

    continued: of a folder: the hash. write: into a folder.
    """
    if len(arguments) == 2 and arguments[0] == "--write":
        return write(pathlib.Path(arguments[1]))
    if len(arguments) != 1:
        sys.exit(usage)
    folder = pathlib.Path(arguments[0])
    found = continued(folder)
    print(found)
    expected = (folder / "expected.txt").read_text(encoding="utf-8").split()
    if expected != [found]:
        sys.exit(f"expected {' '.join(expected)}")


def describe(folder, spec, shapes, hyper, expected):
    """Leaves what a trainer of another language is told beside arrays and checkpoint.

    spec: JSON. shapes: by name. hyper: the eight numbers. expected: the hash after its five steps.
    """
    lines = [" ".join(map(str, (name, *shape))) for name, shape in shapes.items()]
    for name, text in {
        "spec.json": spec,
        "tensors.txt": "\n".join(lines) + "\n",
        "hyper.txt": " ".join(str(np.float32(x)) for x in hyper) + "\n",
        "expected.txt": expected + "\n",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")


def run_page(page):
    """Runs the Python code of a page in an empty folder, without its output.

    Returns the blocks of code, and the names that they leave.
    """
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names, before = {}, os.getcwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        try:
            for block in blocks:
                exec(compile(block, page.name, "exec"), names)
        finally:
            os.chdir(before)
    return blocks, names
