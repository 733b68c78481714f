"""Can the library use the GPU? Asked through the C ABI alone: no torch, no JAX."""

import ctypes
import pathlib

from lowbit._library import create, library, version


def run(report):
    report.environment["lowbit"] = version()
    driver = pathlib.Path("/proc/driver/nvidia/version")
    if driver.is_file():
        report.environment["driver"] = driver.read_text(encoding="utf-8").splitlines()[0]
    if report.check("lowbit_cuda_probe", probe):
        report.check("lowbit_context_create_cuda", open_context)


def probe():
    """Asks with a buffer, as the reason is then had without the last error."""
    text = ctypes.create_string_buffer(1025)
    status = library().lowbit_cuda_probe(0, text, len(text), None)
    reason = text.value.decode()
    if status != 0:
        raise AssertionError(f"{library().lowbit_status_name(status).decode()}: {reason}")
    return reason


def open_context():
    """Loads all kernels; the driver compiles their PTX unless it has that in its cache."""

    class Owner:
        """Destroys the context when it is collected."""

    create(Owner(), "context", "lowbit_context_create_cuda", None)
    return "all kernels loaded"
