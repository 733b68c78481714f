"""Whether calls allocate device memory: a part of its own, as it looks at the memory of the whole
device, which other processes would change."""

import inputs
from calls import Calls
from device import ENVIRONMENT, torch


def run(report):
    report.environment.update(ENVIRONMENT)
    random = inputs.Random(report.seed)
    for name in Calls.names:
        report.check(f"no device memory allocated: {name}", no_allocation, random, name)


def no_allocation(random, name):
    calls = Calls(random)
    calls.enqueue(name)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()
    for _ in range(100):
        calls.enqueue(name)
    enqueued = torch.cuda.mem_get_info()
    torch.cuda.synchronize()
    after = torch.cuda.mem_get_info()
    if not before == enqueued == after:
        raise AssertionError(f"(free, total) was {before}, then {enqueued}, then {after}")
    return f"{before[0]} bytes free before and after 100 calls"
