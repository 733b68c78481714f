"""Shards: FSDP2, tensor parallelism, two-dimensional meshes and DDP on Gloo, bit for bit equal to
one process, and a checkpoint of three processes that two go on from."""

import gc
import os
import pathlib
import tempfile
import unittest

import support

import torch

if support.VERSION < (2, 5):
    raise unittest.SkipTest("before torch 2.5: there is no torch.distributed.tensor")

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import lowbit
import lowbit.torch as lt

SPECS = ("adamw4", "adamw4-block", "factor4", "adamw8")
OPTIONS = {"lr": 1e-2, "weight_decay": 0.1}


def model():
    """67 rows are 23, 23 and 21 on three processes; one row is there on one of them only."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(300, 67), torch.nn.Linear(67, 40), torch.nn.Linear(5000, 1)]
    return torch.nn.Sequential(*layers)


def gradient(param, step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(param.shape, generator=generator)


def steps(optimizer, params, begin, end):
    """Steps with gradients that depend on nothing but the step, cut as the parameters are."""
    for step in range(begin, end):
        for param in params:
            param.grad = gradient(param, step)
            if isinstance(param, DTensor):
                mesh, placements = param.device_mesh, param.placements
                param.grad = distribute_tensor(param.grad, mesh, placements)
        optimizer.step()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def snapshot(optimizer):
    return {key: whole(value) for key, value in support.snapshot(optimizer).items()}


def reference(end, **options):
    """One process alone."""
    net = model()
    optimizer = lt.AdamW4bit(net.named_parameters(), **OPTIONS, **options)
    steps(optimizer, list(net.parameters()), 0, end)
    return optimizer


def check(left, right, what):
    left, right = snapshot(left), snapshot(right)
    if not support.same(left, right):
        differ = [key for key in left if not torch.equal(left[key], right[key])]
        raise AssertionError(f"{what}: {differ} differ from one process's")


def start(rank, ranks, work, folder):
    os.environ.update(MASTER_ADDR="localhost", RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"{work.__name__}-{ranks}"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    try:
        work(folder, init_device_mesh("cpu", (ranks,)))
        # What the work has left in cycles goes while the group is there, or its threads may outlive it.
        gc.collect()
        # A process must not go while others still talk to it.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def sharded(mesh, **options):
    net = model()
    for layer in net:
        fully_shard(layer, mesh=mesh)
    return net, lt.AdamW4bit(net.named_parameters(), **OPTIONS, **options)


def three(folder, mesh):
    for spec in SPECS:
        net, optimizer = sharded(mesh, spec=spec)
        steps(optimizer, list(net.parameters()), 0, 4)
        check(optimizer, reference(4, spec=spec), f"FSDP2 {spec}")
        for state in optimizer.state.values():
            for key, value in state.items():
                assert isinstance(value, DTensor) == (key != "step"), key
        # A real backward, too.
        optimizer.zero_grad()
        net[1](net[0](torch.ones(4, 300))).sum().backward()
        optimizer.step()
    # NaN in the gradient of one process: all skip the same tensor, or the same block.
    net, optimizer = sharded(mesh)
    alone = reference(0)
    for some in (optimizer, alone):
        params = some.param_groups[0]["params"]
        for param in params:
            grad = gradient(param, 0)
            if param.shape == (67, 300):
                grad[3, 3] = float("nan")
            if isinstance(param, DTensor):
                grad = distribute_tensor(grad, mesh, param.placements)
            param.grad = grad
        some.step()
    check(optimizer, alone, "a NaN")

    net, optimizer = sharded(mesh)
    steps(optimizer, list(net.parameters()), 0, 4)
    model_state, optimizer_state = get_state_dict(net, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder / "dcp")
    tensor_parallel(mesh)
    refused(mesh)
    taken_over(mesh)


def taken_over(mesh):
    """A running AdamW of torch on shards becomes one of lowbit and is given back."""
    for options in ({}, {"amsgrad": True}, {"spec": "factor4"}):
        amsgrad = options.get("amsgrad", False)
        spec = {key: value for key, value in options.items() if key != "amsgrad"}
        ends = []
        for net in (model(), model()):
            if ends:
                for layer in net:
                    fully_shard(layer, mesh=mesh)
            params = list(net.parameters())
            adamw = torch.optim.AdamW(params, amsgrad=amsgrad, **OPTIONS)
            steps(adamw, params, 0, 3)
            optimizer = lt.AdamW4bit.from_adamw(adamw, **spec)
            taken = snapshot(optimizer)
            steps(optimizer, params, 3, 5)
            back = optimizer.to_adamw()
            ends.append((taken, snapshot(optimizer), torchs(back)))
            assert all(isinstance(p, DTensor) for p in params) == (len(ends) == 2)
            kinds = {type(back.state[p]["exp_avg"]) for p in params}
            assert kinds == {DTensor if len(ends) == 2 else torch.Tensor}, kinds
            steps(back, params, 5, 6)
        for alone, shards, what in zip(*ends, ("taken over", "stepped", "given back")):
            assert support.same(alone, shards), f"{what} {options}"


def torchs(optimizer):
    """A snapshot of one of torch's optimizers."""
    return {
        (i, key): whole(value).clone()
        for i, state in enumerate(optimizer.state.values())
        for key, value in state.items()
    }


def tensor_parallel(mesh):
    """Columns are cut at block boundaries."""
    values = gradient(torch.empty(67, 384), 99)
    ends = []
    for place in (lambda t: t, lambda t: distribute_tensor(t, mesh, [Shard(1)])):
        param = torch.nn.Parameter(place(values.clone()))
        optimizer = lt.AdamW4bit([("w", param)], **OPTIONS)
        steps(optimizer, [param], 0, 4)
        ends.append(optimizer)
    check(ends[1], ends[0], "columns")


def refused(mesh):
    param = torch.nn.Parameter(distribute_tensor(torch.ones(67, 300), mesh, [Shard(1)]))
    optimizer = lt.AdamW4bit([("w", param)])
    param.grad = param.detach()
    try:
        optimizer.step()
    except lowbit.Error as error:
        assert '"w"' in str(error) and "inside a block" in str(error), error
    else:
        raise AssertionError("a cut inside a block was accepted")


def two(folder, mesh):
    net, optimizer = sharded(mesh)
    model_state, optimizer_state = get_state_dict(net, optimizer)
    loaded = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(loaded, checkpoint_id=folder / "dcp")
    set_state_dict(
        net,
        optimizer,
        model_state_dict=loaded["model"],
        optim_state_dict=loaded["optimizer"],
    )
    check(optimizer, reference(4), "loaded by two processes")
    steps(optimizer, list(net.parameters()), 4, 6)
    check(optimizer, reference(6), "two more steps")
    data_parallel()


def data_parallel():
    net = support.model()
    wrapped = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = lt.AdamW4bit(wrapped.parameters(), **OPTIONS)
    for step in range(3):
        generator = torch.Generator().manual_seed(2 * step + dist.get_rank())
        optimizer.zero_grad()
        wrapped(torch.randn(8, 96, generator=generator)).pow(2).mean().backward()
        optimizer.step()
    for name, value in snapshot(optimizer).items():
        mine = torch.frombuffer(bytearray(support.tensor_bytes(value)), dtype=torch.uint8)
        first = mine.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, mine), f"{name} differs between the processes"


def four(folder, mesh):
    """Replicas of shards, and both axes cut."""
    mesh = init_device_mesh("cpu", (2, 2))
    values = gradient(torch.empty(67, 256), 99)
    for spec in ("adamw4", "factor4"):
        alone = torch.nn.Parameter(values.clone())
        expected = lt.AdamW4bit([("w", alone)], spec=spec, **OPTIONS)
        steps(expected, [alone], 0, 4)
        for placements in ([Replicate(), Shard(0)], [Shard(0), Shard(1)]):
            param = torch.nn.Parameter(distribute_tensor(values.clone(), mesh, placements))
            optimizer = lt.AdamW4bit([("w", param)], spec=spec, **OPTIONS)
            steps(optimizer, [param], 0, 4)
            check(optimizer, expected, f"{placements} {spec}")


class TestShards(unittest.TestCase):
    def spawn(self, ranks, work, folder):
        mp.spawn(start, (ranks, work, pathlib.Path(folder)), nprocs=ranks)

    def test_three_processes_then_two(self):
        with tempfile.TemporaryDirectory() as folder:
            self.spawn(3, three, folder)
            self.spawn(2, two, folder)

    def test_a_mesh_of_two_dimensions(self):
        with tempfile.TemporaryDirectory() as folder:
            self.spawn(4, four, folder)


if __name__ == "__main__":
    unittest.main()
