"""Saving and loading a state of about 1 GB, against cp and torch.save of the same bytes.

    cargo xtask checkpoints [--rounds N] [--folder FOLDER]

Each round does everything once, in turn, so that all see the same machine; the table has medians
and ratios of them. Everything that writes ends with fsync of file and folder. Files are read from the
page cache.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

import lowbit
import numpy as np
import torch


def sync(path):
    for name in (path, path.parent):
        descriptor = os.open(name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the files go (default: the temporary folder)")
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(dir=options.folder))
    try:
        measure(folder, options.rounds)
    finally:
        shutil.rmtree(folder)


def measure(folder, rounds):
    shapes = [(4096, 4096)] * 56 + [(32000, 1024)]
    tensors = [lowbit.Tensor(f"t{i}", shape) for i, shape in enumerate(shapes)]
    plan = lowbit.Plan("adamw4", tensors)
    random = np.random.default_rng(1)
    state, other = plan.zeros(), plan.zeros()
    for array in state:
        array.reshape(-1).view(np.uint8)[:] = random.integers(0, 120, array.nbytes, np.uint8)
    torch_state = {str(i): torch.from_numpy(array) for i, array in enumerate(state)}
    ours, copied, theirs = folder / "ours", folder / "copied", folder / "theirs"

    def cp():
        subprocess.run(["cp", "--reflink=never", ours, copied], check=True)
        sync(copied)

    def torch_save():
        torch.save(torch_state, theirs)
        sync(theirs)

    def torch_load():
        loaded = torch.load(theirs, weights_only=True)
        for array, tensor in zip(other, loaded.values(), strict=True):
            np.copyto(array, tensor.numpy())

    def read():
        # What any reader does at least: every byte once, into memory that is there.
        with open(ours, "rb", buffering=0) as file:
            chunk = memoryview(bytearray(1 << 20))
            while file.readinto(chunk):
                pass

    work = {
        "lowbit save": lambda: plan.save(ours, state, 1),
        "cp and fsync": cp,
        "torch.save and fsync": torch_save,
        "lowbit load": lambda: plan.load(ours, other),
        "read the file": read,
        "torch.load": torch_load,
    }
    times = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, function in work.items():
            for path in {"lowbit save": [ours], "cp and fsync": [copied]}.get(name, [theirs][:0]):
                path.unlink(missing_ok=True)
            os.sync()
            start = time.perf_counter()
            function()
            # The first round warms up.
            if number > 0:
                times[name].append(time.perf_counter() - start)
        assert all(np.array_equal(a, b) for a, b in zip(state, other, strict=True))
    size = ours.stat().st_size
    print(f"{size} bytes, {rounds} rounds, {os.cpu_count()} cores, torch {torch.__version__}\n")
    print(f"| {'':22} | median s | spread s | GB/s | to cp or read |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, list_ in times.items():
        base = "cp and fsync" if "save" in name or "cp" in name else "read the file"
        median = statistics.median(list_)
        ratio = median / statistics.median(times[base])
        print(
            f"| {name:22} | {median:.2f} | {min(list_):.2f}-{max(list_):.2f} | "
            f"{size / median / 1e9:.2f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
