"""What a result has to say about where it was measured. No names of hosts, no paths."""

import hashlib
import importlib.metadata
import pathlib
import platform
import subprocess

PACKAGES = ("torch", "torchao", "bitsandbytes", "deepspeed", "jax", "optax", "numpy")


def describe():
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    memory = pathlib.Path("/proc/meminfo").read_text()
    huge = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": _field(cpu, "model name"),
        "family, model, stepping": [
            int(_field(cpu, name)) for name in ("cpu family", "model", "stepping")
        ],
        "avx512": "avx512f" in _field(cpu, "flags").split(),
        "virtual": "hypervisor" in _field(cpu, "flags").split(),
        "cores": cpu.count("\nprocessor\t") + 1,
        "caches": caches(),
        "memory_gib": round(int(_field(memory, "MemTotal").split()[0]) / 2**20),
        "huge_pages": huge.read_text().strip() if huge.exists() else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def caches():
    """name -> bytes of the caches that the first core sees."""
    found = {}
    for index in sorted(pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            found[f"L{level}"] = int(size.removesuffix("K")) * 1024
    return found


def commit():
    """The checkout's, marked if there is more than that."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    here = pathlib.Path(__file__).parent
    return subprocess.run(git, cwd=here, capture_output=True, text=True).stdout.strip() or None


def digest(path):
    """Tells builds of the library apart, which commits do not."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16]


def _field(text, name):
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    raise KeyError(name)
