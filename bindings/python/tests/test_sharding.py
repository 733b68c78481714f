"""On meshes of devices: the bits of one device, nothing gathered, nothing copied."""

import os
import re
import subprocess
import sys
import tempfile
import unittest

import support
from support import grad, param, reference, same, state_buffers

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

import lowbit
import lowbit.jax

# `cube` has rows that are merged over two axes; `bias` is small and cut inside a block.
SHAPES = {"bias": (256,), "cube": (8, 40, 64), "matrix": (128, 1024), "norm": (96,)}
STEPS = 3
OPTIMIZERS = {
    "block": lowbit.jax.adamw(1e-3, spec="adamw4-block"),
    "rank-1": lowbit.jax.adamw(1e-3),
    "factored": lowbit.jax.factor(1e-3),
    "factored in f32": lowbit.jax.factor(1e-3, spec="factor32"),
    "adafactor": lowbit.jax.adafactor(1e-3),
    "sm3": lowbit.jax.sm3(1e-3),
    "lion": lowbit.jax.lion(1e-3),
}
HYPER = {
    "adafactor": {"eps": 1e-30, "weight_decay": 0.0},
    "sm3": {"weight_decay": 0.0},
    "lion": {"beta2": 0.99, "weight_decay": 1e-3},
}
# Of each mesh the axes and how every tensor is sharded: from one that is on a single device to one
# whose first axis is cut by two axes of the mesh.
MESHES = {
    "1": ((1,), ("a",), {"bias": P("a"), "cube": P("a"), "matrix": P("a")}),
    "8 rows": ((8,), ("a",), {"bias": P("a"), "cube": P("a"), "matrix": P("a")}),
    "8 columns": ((8,), ("a",), {"bias": P(), "cube": P("a"), "matrix": P(None, "a")}),
    "4x2": ((4, 2), ("a", "b"), {"bias": P("b"), "cube": P("b", "a"), "matrix": P("a", "b")}),
    "2x2x2": (
        (2, 2, 2),
        ("a", "b", "c"),
        {"bias": P("c"), "cube": P(("b", "a")), "matrix": P(("a", "c"), "b")},
    ),
}


def mesh_of(name, explicit=False):
    """A mesh, and for each tensor its sharding."""
    shape, axes, specs = MESHES[name]
    types = {}
    if hasattr(jax.sharding, "AxisType"):
        kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
        types = {"axis_types": (kind,) * len(axes)}
    mesh = jax.make_mesh(shape, axes, devices=jax.devices()[: int(np.prod(shape))], **types)
    return mesh, {key: NamedSharding(mesh, specs.get(key, P())) for key in SHAPES}


def put(array, sharding):
    """A global array, each device's part from this process."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def model(shardings, step=0):
    params = {key: param(i, shape) for i, (key, shape) in enumerate(SHAPES.items())}
    grads = {key: grad(99 + i, shape) for i, (key, shape) in enumerate(SHAPES.items())}
    if shardings is None:
        return params, grads
    put_all = lambda tree: {key: put(tree[key], shardings[key]) for key in SHAPES}  # noqa: E731
    return put_all(params), put_all(grads)


def with_shardings(name, shardings):
    rule = OPTIMIZERS[name]._rule
    return lowbit.jax.Optimizer(type(rule)(**{**vars(rule), "shardings": shardings}))


def stepper(optimizer, door="apply"):
    def step(params, state, grads):
        return getattr(optimizer, door)(grads, state, params)

    return jax.jit(step, donate_argnums=(0, 1))


class TestMeshes(unittest.TestCase):
    def check(self, name, params, state):
        plan, want, buffers = reference(
            OPTIMIZERS[name].spec, *model(None), STEPS, lr=1e-3, **HYPER.get(name, {})
        )
        for key in SHAPES:
            self.assertTrue(same(params[key], want[key]), key)
        for info, got, buffer in zip(plan.buffers, state_buffers(plan, state), buffers):
            self.assertTrue(same(got, buffer), info)

    def test_every_mesh_gives_the_bits_of_one_device(self):
        for mesh_name in MESHES:
            for name in OPTIMIZERS:
                with self.subTest(mesh=mesh_name, optimizer=name):
                    _, shardings = mesh_of(mesh_name)
                    optimizer = with_shardings(name, shardings)
                    params, grads = model(shardings)
                    state, step = optimizer.init(params), stepper(optimizer)
                    for _ in range(STEPS):
                        params, state = step(params, state, grads)
                    self.check(name, params, state)
                    for key in SHAPES:
                        spec = params[key].sharding.spec
                        self.assertTrue(
                            params[key].sharding.is_equivalent_to(
                                shardings[key], len(SHAPES[key])
                            ),
                            (key, spec),
                        )

    @unittest.skipUnless(hasattr(jax, "set_mesh"), "this JAX has no meshes with Explicit axes")
    def test_explicit_axes_need_no_argument(self):
        for name in ("block", "rank-1", "factored"):
            mesh, shardings = mesh_of("4x2", explicit=True)
            with self.subTest(optimizer=name), jax.set_mesh(mesh):
                params, grads = model(shardings)
                state, step = OPTIMIZERS[name].init(params), stepper(OPTIMIZERS[name])
                self.assertEqual(jax.typeof(state.m.codes["matrix"]).sharding.spec, P("a", "b"))
                before = jax.tree.map(jax.typeof, state)
                for _ in range(STEPS):
                    params, state = step(params, state, grads)
                self.assertEqual(jax.tree.map(jax.typeof, state), before)
                self.check(name, params, state)

    def test_nothing_is_gathered_or_copied_and_all_stays_in_place(self):
        for name, reduces in (("block", 0), ("rank-1", 1), ("factored", 1)):
            with self.subTest(optimizer=name):
                _, shardings = mesh_of("8 rows")
                # A cut inside a block, as the bias has here, is gathered: it is small.
                shardings["bias"] = shardings["norm"]
                optimizer = with_shardings(name, shardings)
                params, grads = model(shardings)
                state, step = optimizer.init(params), stepper(optimizer)
                text = step.lower(params, state, grads).compile().as_text()
                self.assertIn("lowbit_xla_shard", text)
                self.assertNotIn("all-gather", text)
                self.assertEqual("all-reduce" in text, True)  # at least of the counters
                states = [*jax.tree.leaves(state.m), *jax.tree.leaves(state.v)]
                shapes = {
                    "[" + ",".join(map(str, array.addressable_shards[0].data.shape)) + "]"
                    for array in [*states, *params.values()]
                    if array.size > 4096
                }
                copied = re.findall(r"= \w+(\[[\d,]*\])\S* copy\(", text)
                self.assertFalse(shapes & set(copied))

                def pointers(tree):
                    return [
                        [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]
                        for array in jax.tree.leaves(tree)
                        if array.size > 4096
                    ]

                params, state = step(params, state, grads)
                before = pointers((params, state))
                params, state = step(params, state, grads)
                self.assertEqual(pointers((params, state)), before)

    def test_what_cannot_be_cut_is_named(self):
        mesh, _ = mesh_of("8 rows")
        params = {"deep": {"w": np.zeros((64, 520), np.float32)}}
        for spec, reason in (
            (P(None, "a"), r"deep\.w of shape \(64, 520\) cannot be sharded.*block"),
            (P(("a",), None), None),
        ):
            optimizer = lowbit.jax.adamw(
                1e-3, shardings=jax.tree.map(lambda _: NamedSharding(mesh, spec), params)
            )
            if reason is None:
                optimizer.init(params)
                continue
            with self.assertRaisesRegex(ValueError, reason):
                optimizer.init(params)
        with self.assertRaisesRegex(ValueError, "w of shape .60, 512.*multiple of 8"):
            shardings = {"w": NamedSharding(mesh, P("a"))}
            lowbit.jax.adamw(1e-3, shardings=shardings).init({"w": np.zeros((60, 512), "f4")})

    def test_propagation_without_shardy_is_refused(self):
        before = jax.config.jax_use_shardy_partitioner
        jax.config.update("jax_use_shardy_partitioner", False)
        try:
            with self.assertRaisesRegex(ValueError, "needs the partitioner Shardy"):
                lowbit.jax.adamw(1e-3, shardings="propagate")
        finally:
            jax.config.update("jax_use_shardy_partitioner", before)

    def test_non_finite_gradients_are_skipped_everywhere(self):
        _, shardings = mesh_of("8 rows")
        optimizer = with_shardings("rank-1", shardings)
        params, grads = model(shardings)
        bad = np.array(grads["matrix"])
        bad[77, 5] = np.inf
        grads["matrix"] = put(bad, shardings["matrix"])
        before = np.array(params["matrix"])
        new, state = stepper(optimizer)(params, optimizer.init(params), grads)
        self.assertTrue(same(new["matrix"], before))
        self.assertEqual(state.skipped.tolist(), [0, 1])


@unittest.skipUnless(jax.config.jax_use_shardy_partitioner, "this JAX partitions without Shardy")
class TestPropagation(unittest.TestCase):
    """`shardings="propagate"`: Auto axes under `jit`, where only XLA knows."""

    check = TestMeshes.check

    def test_every_mesh_gives_the_bits_of_one_device(self):
        for mesh_name in MESHES:
            for name in ("block", "rank-1", "factored", "adafactor"):
                with self.subTest(mesh=mesh_name, optimizer=name):
                    _, shardings = mesh_of(mesh_name)
                    optimizer = with_shardings(name, "propagate")
                    params, grads = model(shardings)
                    state, step = optimizer.init(params), stepper(optimizer)
                    before = jax.tree.map(lambda x: x.sharding, (params, state.m, state.v))
                    for _ in range(STEPS):
                        params, state = step(params, state, grads)
                    self.check(name, params, state)
                    after = jax.tree.map(lambda x: x.sharding, (params, state.m, state.v))
                    arrays = jax.tree.leaves((params, state.m, state.v))
                    for old, new, array in zip(
                        jax.tree.leaves(before), jax.tree.leaves(after), arrays, strict=True
                    ):
                        self.assertTrue(new.is_equivalent_to(old, array.ndim), (old, new))

    def test_nothing_is_gathered_where_the_default_gathers(self):
        for name in ("block", "rank-1", "factored"):
            with self.subTest(optimizer=name):
                _, shardings = mesh_of("8 rows")
                shardings["bias"] = shardings["norm"]
                params, grads = model(shardings)
                gathers = {}
                for choice in (None, "propagate"):
                    optimizer = with_shardings(name, choice)
                    state, step = optimizer.init(params), stepper(optimizer)
                    text = step.lower(params, state, grads).compile().as_text()
                    gathers[choice] = text.count("all-gather(")
                self.assertGreater(gathers[None], 0)
                self.assertEqual(gathers["propagate"], 0)

    def test_one_device_and_a_trace_of_its_own_need_no_mesh(self):
        params, grads = model(None)
        optimizer = with_shardings("rank-1", "propagate")
        state, step = optimizer.init(params), stepper(optimizer)
        for _ in range(STEPS):
            params, state = step(params, state, grads)
        self.check("rank-1", params, state)
        with self.assertRaisesRegex(ValueError, "shardings is 'propagated'"):
            lowbit.jax.adamw(1e-3, shardings="propagated")

    def test_what_cannot_be_cut_is_named(self):
        mesh, _ = mesh_of("8 rows")
        sharding = NamedSharding(mesh, P(None, "a"))
        params = {"deep": {"w": put(np.zeros((64, 520), np.float32), sharding)}}
        optimizer = lowbit.jax.adamw(1e-3, shardings="propagate")
        with self.assertRaisesRegex(ValueError, r"deep\.w of shape \(64, 520\).*block"):
            optimizer.init(params)
        state = jax.tree.map(np.asarray, lowbit.jax.adamw(1e-3).init(jax.device_get(params)))
        with self.assertRaisesRegex(Exception, r"deep\.w of shape \(64, 520\).*block"):
            stepper(optimizer).lower(params, state, params).compile()


class TestOrbax(unittest.TestCase):
    check = TestMeshes.check

    def test_orbax_on_one_mesh_then_on_another(self):
        import orbax.checkpoint as ocp

        with tempfile.TemporaryDirectory() as folder:
            for name in ("block", "rank-1", "factored"):
                _, before = mesh_of("8 rows")
                optimizer = with_shardings(name, before)
                params, grads = model(before)
                state, step = optimizer.init(params), stepper(optimizer)
                for _ in range(STEPS - 1):
                    params, state = step(params, state, grads)
                path = os.path.join(folder, name)
                with ocp.StandardCheckpointer() as checkpointer:
                    checkpointer.save(path, (params, state))
                _, after = mesh_of("4x2")
                optimizer = with_shardings(name, after)
                params, grads = model(after)
                target = params, optimizer.init(params)
                with ocp.StandardCheckpointer() as checkpointer:
                    params, state = checkpointer.restore(path, target)
                state = jax.tree.unflatten(jax.tree.structure(target[1]), jax.tree.leaves(state))
                params, state = stepper(optimizer)(params, state, grads)
                self.check(name, params, state)


class TestProcesses(unittest.TestCase):
    def test_two_processes_give_the_bits_of_one(self):
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                **os.environ,
                "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            }
            port = support.free_port()
            runs = [
                subprocess.Popen(
                    [sys.executable, "-m", "processes", str(i), str(port), folder],
                    cwd=os.path.dirname(os.path.abspath(__file__)),
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for i in range(2)
            ]
            texts = [run.communicate(timeout=300)[0] for run in runs]
            self.assertEqual([run.returncode for run in runs], [0, 0], "\n".join(texts))
            for name in ("block", "rank-1", "factored"):
                _, want, _ = reference(OPTIMIZERS[name].spec, *model(None), STEPS, lr=1e-3)
                parts = 0
                for i in range(2):
                    found = np.load(os.path.join(folder, f"{name}-{i}.npz"))
                    for entry in found.files:
                        key, at = entry.split("@")
                        index = tuple(
                            slice(*map(int, axis.split(":"))) for axis in at.split(",") if axis
                        )
                        self.assertTrue(same(found[entry], want[key][index]), entry)
                        parts += 1
                self.assertGreaterEqual(parts, 2 * len(SHAPES))


if __name__ == "__main__":
    unittest.main()
