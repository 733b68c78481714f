"""lowbit.torch on a CUDA device: the CPU's bits, captured steps, what surrounds a step, memory.

LOWBIT_REHEARSAL=cpu runs the same code without a GPU, but for what only a GPU has.
"""

import contextlib
import copy
import gc
import os
import pathlib
import tempfile

import lowbit
import lowbit.torch as lt
import torch

REHEARSAL = "LOWBIT_REHEARSAL" in os.environ
DEVICE = torch.device("cpu") if REHEARSAL else torch.device("cuda", 0)

SHAPES = ((512, 384), (64, 3, 3, 3), (5000,), (300, 257), ())
STEPS = 5

#: Optimizers, their options, and the parameters' dtype.
CASES = (
    *((lt.AdamW4bit, {}, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
    (lt.AdamW4bit, {"v": "block"}, torch.float32),
    (lt.AdamW4bit, {"v": "block"}, torch.bfloat16),
    (lt.AdamW4bit, {"amsgrad": True, "maximize": True}, torch.float32),
    (lt.AdamW4bit, {"overrides": {"0": 8, "3": 32}}, torch.float32),
    (lt.AdamW8bit, {}, torch.bfloat16),
    (lt.Adam4bit, {"weight_decay": 0.1}, torch.float32),
    (lt.SGD4bit, {"momentum": 0.9}, torch.bfloat16),
    (lt.Lion4bit, {}, torch.bfloat16),
    *(
        (cls, {}, dtype)
        for cls in (lt.Factor4bit, lt.Adafactor, lt.SM3)
        for dtype in (torch.float32, torch.bfloat16)
    ),
    *(
        (lt.AdamW4bit, {"weights": weights}, torch.bfloat16)
        for weights in ("stochastic", "master", "remainder16", "correction8")
    ),
)


def run(report):
    report.environment.update(
        lowbit=lowbit.version(),
        torch=torch.__version__,
        gpu="none: a rehearsal" if REHEARSAL else torch.cuda.get_device_name(DEVICE),
    )
    for cls, options, dtype in CASES:
        name = f"{cls.__name__} {options or ''} {str(dtype)[6:]}"
        report.check(f"the CPU's bits, {name}", same_bits, cls, options, dtype)
    report.check("hyper-parameters as tensors", tensors)
    report.check("a gradient that is not finite", not_finite)
    report.check("states from the CPU and back, by state_dict and by file", moved)
    report.check("GradScaler", scaled)
    report.check("states on the host", offloaded)
    report.check("gradient release", released)
    report.check("torch.compile", compiled)
    report.check("no wait for the device in a step", no_wait)
    report.check("a step in a CUDA graph", captured_step)
    report.check("a whole training step in a CUDA graph", captured_training)
    report.check("memory", memory)


# ---- parameters and gradients --------------------------------------------------------------------


def parameters(device, dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    return [torch.nn.Parameter(value.to(device, dtype)) for value in values]


def fill(params, step):
    """The gradients of a step, the same on every device and at the same addresses each time."""
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        if param.grad is None:
            param.grad = torch.empty_like(param)
        param.grad.copy_(grad)


def pair(cls=lt.AdamW4bit, dtype=torch.float32, **options):
    """Parameters and optimizer on the CPU, and the same on the device."""
    found = []
    for device in (torch.device("cpu"), DEVICE):
        params = parameters(device, dtype)
        found.append((params, cls(params, lr=1e-2, **options)))
    return found


def step(pairs, begin=0, end=STEPS):
    for number in range(begin, end):
        for params, optimizer in pairs:
            fill(params, number)
            optimizer.step()


def bytes_of(tensor):
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def require_same(left, right):
    """Raises unless the bits of parameters and states are the same. Returns how many there are."""
    compared = 0
    for a, b in zip(*(opt.param_groups[0]["params"] for opt in (left, right)), strict=True):
        mine, theirs = ({"param": p.detach(), **opt.state[p]} for p, opt in ((a, left), (b, right)))
        if mine.keys() != theirs.keys():
            raise AssertionError(f"states {sorted(mine)} and {sorted(theirs)}")
        for key, value in mine.items():
            if not torch.equal(bytes_of(value), bytes_of(theirs[key])):
                raise AssertionError(f"{key} of shape {tuple(value.shape)} differs")
            compared += bytes_of(value).numel()
    return f"{compared / 1e6:.2f} MB equal"


# ---- checks --------------------------------------------------------------------------------------


def same_bits(cls, options, dtype):
    pairs = pair(cls, dtype, **options)
    step(pairs)
    return require_same(pairs[0][1], pairs[1][1])


def tensors():
    """Learning rate and betas in device memory, changed between steps."""
    ends = []
    for device in (torch.device("cpu"), DEVICE):
        params = parameters(device)
        betas = (torch.tensor(0.8, device=device), torch.tensor(0.95, device=device))
        lr = torch.tensor(0.01, device=device)
        optimizer = lt.AdamW4bit(params, lr=lr, betas=betas, capturable=True)
        for number in range(STEPS):
            lr.fill_(0.01 / (1 + number))
            step([(params, optimizer)], number, number + 1)
        ends.append(optimizer)
    return require_same(*ends)


def not_finite():
    compared = []
    for policy in ("default", "skip_step", "propagate"):
        pairs = pair(nonfinite=policy)
        step(pairs, 0, 2)
        for params, optimizer in pairs:
            fill(params, 2)
            params[0].grad.view(-1)[7] = float("nan")
            optimizer.step()
        skipped = [optimizer.skipped() for _, optimizer in pairs]
        if skipped[0] != skipped[1]:
            raise AssertionError(f"{policy}: skipped {skipped}")
        if policy != "propagate":
            compared.append(require_same(pairs[0][1], pairs[1][1]))
    return compared[-1]


def moved():
    (params, optimizer), _ = pair()
    step([(params, optimizer)], 0, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "state.safetensors"
        lt.save(path, optimizer)
        others = []
        for load in (
            lambda other: other.load_state_dict(copy.deepcopy(optimizer.state_dict())),
            lambda other: lt.load(path, other),
        ):
            values = [torch.nn.Parameter(p.detach().to(DEVICE, copy=True)) for p in params]
            others.append((values, lt.AdamW4bit(values, lr=1e-2)))
            load(others[-1][1])
        step([(params, optimizer), *others], 3)
        for _, other in others:
            compared = require_same(optimizer, other)
        lt.save(path, others[0][1])
        lt.load(path, optimizer)
    require_same(optimizer, others[0][1])
    return compared


def scaled():
    """A power of two, and an overflow on the way."""
    ends = []
    for scaler in (None, torch.amp.GradScaler(DEVICE.type, init_scale=1024.0)):
        params = parameters(DEVICE)
        optimizer = lt.AdamW4bit(params, lr=1e-2)
        for number in range(STEPS):
            fill(params, number)
            if scaler is None:
                optimizer.step()
                continue
            for overflow in (True, False) if number == 2 else (False,):
                scale = scaler.get_scale()
                # What backward does on a scaled loss; the scaler makes its tensors at the first.
                scaler.scale(torch.ones((), device=DEVICE))
                fill(params, number)
                for param in params:
                    param.grad.mul_(float("inf") if overflow else scale)
                scaler.step(optimizer)
                scaler.update()
                if (scaler.get_scale() < scale) != overflow:
                    raise AssertionError(f"the scale went from {scale} to {scaler.get_scale()}")
        ends.append(optimizer)
    return require_same(*ends)


def offloaded():
    pairs = pair(offload=True)
    step(pairs)
    compared = require_same(pairs[0][1], pairs[1][1])
    places = {t.device.type for s in pairs[1][1].state.values() for t in s.values()}
    if places != {"cpu"}:
        raise AssertionError(f"states are on {places}")
    return compared


def released():
    ends = []
    for release in (False, True):
        params = parameters(DEVICE)
        optimizer = lt.AdamW4bit(params, lr=1e-2)
        handle = lt.release(optimizer) if release else None
        for number in range(STEPS):
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(number)
            factors = [torch.randn(p.shape, generator=generator).to(DEVICE) for p in params]
            sum((p * f).sum() for p, f in zip(params, factors)).backward()
            optimizer.step()
        if handle is not None:
            handle.remove()
        ends.append(optimizer)
    return require_same(*ends)


def compiled():
    params, other = parameters(DEVICE), parameters(DEVICE)
    optimizer, eager = lt.AdamW4bit(params, lr=1e-2), lt.AdamW4bit(other, lr=1e-2)
    call = torch.compile(optimizer.step, fullgraph=True, backend="aot_eager")
    for number in range(STEPS):
        fill(params, number)
        fill(other, number)
        call()
        eager.step()
    return require_same(optimizer, eager)


def no_wait():
    """torch raises where something waits for the device."""
    params = parameters(DEVICE)
    optimizer = lt.AdamW4bit(params, lr=1e-2)
    step([(params, optimizer)], 0, 2)
    if REHEARSAL:
        optimizer.step()
        return "not rehearsed"
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(3):
            optimizer.param_groups[0]["lr"] = 1e-2 / (2 + number)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "three steps, with another lr each"


@contextlib.contextmanager
def beside():
    """A stream of its own, as torch asks of the steps before a capture of backward."""
    if REHEARSAL:
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def graph_of(work):
    """A function that does the work again as it was captured."""
    if REHEARSAL:
        return work
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def captured_step():
    """Replays of one captured step, with a learning rate in device memory that changes."""
    params, other = parameters(DEVICE), parameters(DEVICE)
    rates = [torch.tensor(1e-2, device=DEVICE) for _ in range(2)]
    options = {"capturable": True}
    optimizer = lt.AdamW4bit(params, lr=rates[0], **options)
    eager = lt.AdamW4bit(other, lr=rates[1], **options)
    step([(params, optimizer), (other, eager)], 0, 2)
    fill(params, 2)
    replay = graph_of(optimizer.step)
    for number in range(2, 8):
        for rate in rates:
            rate.fill_(1e-2 / number)
        fill(params, number)
        fill(other, number)
        replay()
        eager.step()
    return require_same(optimizer, eager)


def captured_training():
    """Forward, backward and step in one graph: the loss falls as without one."""
    losses = []
    for capture in (False, True):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 1)]
        net = torch.nn.Sequential(*layers).to(DEVICE)
        optimizer = lt.AdamW4bit(net.parameters(), lr=torch.tensor(1e-3, device=DEVICE))
        x = torch.zeros(128, 64, device=DEVICE)
        loss = torch.zeros((), device=DEVICE)

        def train():
            optimizer.zero_grad(set_to_none=False)
            found = (net(x) - x.square().mean(1, keepdim=True)).square().mean()
            found.backward()
            optimizer.step()
            loss.copy_(found.detach())

        with beside():
            for _ in range(3):
                train()
        work = graph_of(train) if capture else train
        losses.append([])
        for number in range(100):
            x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(number)))
            work()
            losses[-1].append(loss.item())
    eager, graph = torch.tensor(losses)
    torch.testing.assert_close(graph, eager, rtol=1e-3, atol=1e-4)
    if graph[-10:].mean() > graph[:10].mean() / 2:
        raise AssertionError(f"the loss went from {graph[0]} to {graph[-1]}")
    apart = (graph - eager).abs().max()
    return f"loss {graph[0]:.3f} to {graph[-1]:.3f}, at most {apart:.1e} from that of eager steps"


def memory():
    """A transformer's blocks of width 1024: the bytes that a first step asks torch for and keeps are
    those of the plan and of what is documented of a batch, and later steps allocate nothing."""
    block = [(3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096), (3072,), (1024,), (4096,)]
    params = parameters(DEVICE, torch.bfloat16, block * (1 if REHEARSAL else 8))
    optimizer = lt.AdamW4bit(params)
    fill(params, 0)
    # Nothing of earlier checks may be freed between two counts.
    gc.collect()
    counts = [memory_stats()]
    optimizer.step()
    counts.append(memory_stats())
    for _ in range(3):
        optimizer.step()
    counts.append(memory_stats())
    (batch,) = optimizer.batches()
    numel = sum(param.numel() for param in params)
    parts = {
        "states": batch.plan.state_bytes,
        "scratch": batch.plan.scratch_bytes,
        # The step's number and the 1 for it, i32; two counters, i64; eight f32 for each group.
        "the rest": 2 * 4 + 2 * 8 + 8 * 4 * batch.plan.group_count,
    }
    listed = ", ".join(f"{part} {size}" for part, size in parts.items())
    if REHEARSAL:
        return f"{listed} bytes for {numel} parameters; what torch counts is not rehearsed"
    before, first, later = counts
    # Torch's blocks are larger than what is asked for.
    kept, blocks = (
        first[key] - before[key]
        for key in ("requested_bytes.all.current", "allocated_bytes.all.current")
    )
    if kept != sum(parts.values()):
        raise AssertionError(f"{kept} bytes, not {sum(parts.values())}: {listed}")
    allocations = later["allocation.all.allocated"] - first["allocation.all.allocated"]
    if allocations:
        raise AssertionError(f"{allocations} allocations in three steps")
    return (
        f"{kept / numel:.4f} bytes a parameter ({listed}), {blocks / numel:.4f} in torch's blocks;"
        " nothing allocated in three steps"
    )


def memory_stats():
    return None if REHEARSAL else torch.cuda.memory_stats(DEVICE)
