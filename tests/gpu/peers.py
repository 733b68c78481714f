"""PyTorch's fused AdamW, bitsandbytes' 8-bit and torchao's 4-bit AdamW on 10^9 bf16 parameters,
beside lowbit, in one run. 60 GiB of device memory. What is measured is explained in timing.py.

The packages are those of the bundle's folder `packages`, or installed ones.
"""

import importlib.metadata
import sys

import timing
from device import ENVIRONMENT, torch
from report import ROOT
from timing import Copy, Step, enough_memory, measure, numbers

NEEDED_BYTES = 60 << 30
#: Behind what is installed, so that the bundle's packages bring nothing that is there.
PACKAGES = ROOT / "packages"


def run(report):
    report.environment.update(ENVIRONMENT)
    if PACKAGES.is_dir():
        sys.path.append(str(PACKAGES))
    for package in ("bitsandbytes", "torchao"):
        report.environment[package] = version(package)
    if not report.check("enough free device memory", enough_memory, NEEDED_BYTES):
        return
    ours = [Copy(), Step("adamw4-block", "bf16", "bf16"), Step("adamw4", "bf16", "bf16")]
    measure(report, ours)
    for name, make, dtype in PEERS:
        # One that is missing or does not run leaves the others their measurement.
        report.check(f"{name} is measured", beside, report, ours, name, make, dtype)


def beside(report, ours, name, make, dtype):
    """One peer at a time, as together they do not fit. What it compiles at its first steps is not
    measured."""
    peer = Peer(name, make, dtype)
    for _ in range(3):
        peer.run()
    times = measure(report, [*ours, peer], [peer])
    ratio = times[name] / times[ours[1].name]
    report.measure(f"{name}, its time to {ours[1].name}", ratio=ratio)
    return f"{peer.bytes / peer.numel:.3f} bytes a parameter"


class Peer:
    """An optimizer with the interface of torch.optim on one parameter."""

    def __init__(self, name, make, dtype):
        self.name, self.numel = name, timing.NUMEL
        self.param = torch.nn.Parameter(numbers(dtype, 2**-5, self.numel))
        self.param.grad = numbers(dtype, 2**-8, self.numel)
        self.optimizer = make([self.param])
        self.optimizer.step()
        states = self.optimizer.state[self.param].values()
        state_bytes = sum(bytes_of(state) for state in states if hasattr(state, "numel"))
        self.bytes = 3 * self.numel * self.param.element_size() + 2 * state_bytes

    def run(self):
        self.optimizer.step()


def bytes_of(tensor):
    """Also of a subclass that is made of tensors, such as torchao's."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(bytes_of(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def fused(params):
    return torch.optim.AdamW(params, fused=True)


def bitsandbytes(params):
    import bitsandbytes

    # Its kernels are for tensors of less than 2^31 elements; this one has 10^9.
    return bitsandbytes.optim.AdamW8bit(params)


def torchao(params):
    import torchao.optim

    return torchao.optim.AdamW4bit(params)


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


PEERS = (
    ("torch AdamW(fused=True) bf16", fused, "bf16"),
    ("torch AdamW(fused=True) f32", fused, "f32"),
    ("bitsandbytes AdamW8bit bf16", bitsandbytes, "bf16"),
    ("torchao AdamW4bit bf16", torchao, "bf16"),
)
