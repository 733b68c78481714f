"""lowbit.jax: the same bits as the reference however it is called, in place under donation."""

import concurrent.futures
import functools
import json
import pathlib
import tempfile
import time
import unittest

import support  # noqa: F401  (first: it chooses the platform)

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowbit
import lowbit.jax
from lowbit._library import library
from support import grad, param, reference, same, state_buffers, to_jax

SHAPES = {"bias": (257,), "conv": (64, 3, 3, 3), "empty": (0, 4), "scalar": (), "wte": (300, 257)}
FULL = {key: shape for key, shape in SHAPES.items() if 0 not in shape}
PRESETS = ("adamw32", "adamw4", "adamw4-block")


def model(param_dtype="f32", grad_dtype="f32", shapes=SHAPES):
    """Parameters and gradients as dicts of numpy arrays."""
    params = {key: param(i, shape, param_dtype) for i, (key, shape) in enumerate(shapes.items())}
    grads = {key: grad(99 + i, shape, grad_dtype) for i, (key, shape) in enumerate(shapes.items())}
    return params, grads


def step_function(optimizer, door="apply", donate=False):
    def step(params, state, grads, **arguments):
        return getattr(optimizer, door)(grads, state, params, **arguments)

    return jax.jit(step, donate_argnums=(0, 1) if donate else ())


def pointers(tree):
    return [array.unsafe_buffer_pointer() for array in jax.tree.leaves(tree)]


class TestBits(unittest.TestCase):
    def check(self, optimizer, params, grads, result, state, steps, **arguments):
        plan, want, want_state = reference(optimizer.spec, params, grads, steps, **arguments)
        for key in params:
            self.assertTrue(same(result[key], want[key]), key)
        for info, got, buffer in zip(plan.buffers, state_buffers(plan, state), want_state):
            self.assertTrue(same(got, buffer), info)

    def test_every_preset_and_dtype_equals_the_reference(self):
        for spec in PRESETS:
            for dtypes in (("f32", "f32"), ("bf16", "bf16"), ("bf16", "f32"), ("f32", "bf16")):
                with self.subTest(spec=spec, dtypes=dtypes):
                    params, grads = model(*dtypes)
                    optimizer = lowbit.jax.adamw(1e-3, spec=spec)
                    step = step_function(optimizer, donate=True)
                    p, state = to_jax(params), optimizer.init(params)
                    for _ in range(3):
                        p, state = step(p, state, to_jax(grads))
                    self.check(optimizer, params, grads, p, state, 3)
                    self.assertEqual(int(state.count), 3)

    def test_eager_jit_and_scan_are_equal(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(1e-3)
        g = to_jax(grads)

        eager = to_jax(params), optimizer.init(params)
        jitted = to_jax(params), optimizer.init(params)
        step = step_function(optimizer)
        for _ in range(4):
            eager = optimizer.apply(g, eager[1], eager[0])
            jitted = step(*jitted, g)

        @jax.jit
        def loop(params, state):
            def body(carry, _):
                return optimizer.apply(g, carry[1], carry[0]), None

            return jax.lax.scan(body, (params, state), length=4)[0]

        scanned = loop(to_jax(params), optimizer.init(params))
        for other in (jitted, scanned):
            for left, right in zip(jax.tree.leaves(eager), jax.tree.leaves(other), strict=True):
                self.assertTrue(same(left, right))
        self.check(optimizer, params, grads, *eager, 4)

    def test_numbers_of_threads_are_equal(self):
        params, grads = model(shapes={"wte": (2000, 257), "bias": (5000,)})
        for threads in (0, 1, 2, 5):
            with self.subTest(threads=threads):
                optimizer = lowbit.jax.adamw(1e-3, threads=threads)
                result = step_function(optimizer)(
                    to_jax(params), optimizer.init(params), to_jax(grads)
                )
                self.check(optimizer, params, grads, *result, 1)

    def test_calls_at_once_are_equal(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(1e-3, threads=2)
        step, state, g = step_function(optimizer), optimizer.init(params), to_jax(grads)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(step, to_jax(params), state, g) for _ in range(16)]
            for call in calls:
                self.check(optimizer, params, grads, *call.result(), 1)

    def test_more_tensors_than_a_call_takes(self):
        shapes = {f"t{i:03}": (5 + i,) for i in range(129)} | {"w": (70, 70)}
        params, grads = model(shapes=shapes)
        optimizer = lowbit.jax.adamw(1e-3)
        lowered = step_function(optimizer).lower(params, optimizer.init(params), grads)
        self.assertEqual(lowered.as_text().count("@lowbit_xla_step"), 3)
        result = step_function(optimizer)(to_jax(params), optimizer.init(params), to_jax(grads))
        self.check(optimizer, params, grads, *result, 1)

    def test_subnormals_survive_although_xla_flushes_them(self):
        tiny = np.float32(1e-40)
        self.assertEqual(np.asarray(jax.jit(lambda x: x * 2)(jnp.full(8, tiny)))[0], 0)
        for spec in PRESETS:
            for threads in (1, 2):
                with self.subTest(spec=spec, threads=threads):
                    params, grads = model(shapes={"bias": (300,), "wte": (400, 300)})
                    # m is subnormal, as are its scales; v of the second half is, of the first 0.
                    grads = {key: g * np.float32(2e-38) for key, g in grads.items()}
                    for g in grads.values():
                        g.reshape(-1)[g.size // 2 :] *= np.float32(1e18)
                    params = {key: p * tiny for key, p in params.items()}
                    optimizer = lowbit.jax.adamw(1e-30, spec=spec, threads=threads)
                    result = to_jax(params), optimizer.init(params)
                    for _ in range(3):
                        result = step_function(optimizer)(*result, to_jax(grads))
                    self.check(optimizer, params, grads, *result, 3, lr=1e-30)
                    for array in (result[0]["wte"], result[1].m.scales["wte"]):
                        bits = np.asarray(array).view(np.uint32) & 0x7FFFFFFF
                        self.assertTrue(np.any((bits > 0) & (bits < 0x00800000)))


class TestOptimizers(unittest.TestCase):
    def check(self, optimizer, steps=2, dtypes=("f32", "f32"), weights="plain", **hyper):
        """The optimizer's steps are the reference's with these hyper-parameters."""
        params, grads = model(*dtypes)
        step = step_function(optimizer, donate=True)
        p, state = to_jax(params), optimizer.init(params)
        for _ in range(steps):
            p, state = step(p, state, to_jax(grads))
        want = reference(optimizer.spec, params, grads, steps, weights=weights, **hyper)
        plan, want_params, want_state = want
        for key in params:
            self.assertTrue(same(p[key], want_params[key]), key)
        for info, got, buffer in zip(plan.buffers, state_buffers(plan, state), want_state):
            self.assertTrue(same(got, buffer), info)
        return state

    def test_arguments_reach_the_step(self):
        rate, names = 2.0**-7, lowbit.jax
        for optimizer, hyper in (
            (names.adam(rate, 0.8, 0.9, 1e-6, 0.3), (0.8, 0.9, 1e-6, 0.3)),
            (names.factor(rate, 0.8, 0.9, 1e-6, 0.3), (0.8, 0.9, 1e-6, 0.3)),
            (names.sgdm(rate, 0.8, 0.3, nesterov=True), (0.8, 0.9, 1e-6, 0.3)),
            (names.lion(rate, 0.8, 0.9, 0.3), (0.8, 0.9, 1e-6, 0.3)),
            (names.adafactor(rate, momentum=0.8, weight_decay_rate=0.3), (0.8, 0.9, 1e-30, 0.3)),
            (names.sm3(rate, 0.8, 0.3), (0.8, 0.9, 1e-6, 0.3)),
        ):
            with self.subTest(spec=optimizer.spec):
                hyper = dict(zip(("beta1", "beta2", "eps", "weight_decay"), hyper))
                self.check(optimizer, lr=rate, **hyper)

    def test_defaults_are_the_papers(self):
        self.assertEqual(lowbit.jax.adamw(1e-3).spec, lowbit.Spec("adamw4"))
        for name in ("factor", "sgdm", "lion"):
            self.assertEqual(getattr(lowbit.jax, name)(1e-3).spec, lowbit.Spec(f"{name}4"))
        self.assertEqual(lowbit.jax.sm3(1e-3).spec, lowbit.Spec("sm3"))
        self.check(lowbit.jax.adafactor(), lr=0.01, eps=1e-30, weight_decay=0)

    def test_options_of_the_spec_stay(self):
        spec = {"optimizer": "sgdm", "m": {"bits": 32}, "sgdm": {"nesterov": True}}
        options = json.loads(lowbit.jax.sgdm(1e-3, decoupled=True, spec=spec).spec.json)["sgdm"]
        self.assertEqual(options, {"nesterov": True, "dampening": 0.0, "decoupled": True})
        spec = json.loads(lowbit.jax.adafactor().spec.json)
        again = lowbit.jax.adafactor(1e-3, decay_rate=0.5, spec=spec)
        options = json.loads(again.spec.json)["adafactor"]
        self.assertEqual((options["relative_step"], options["decay_rate"]), (True, 0.5))

    def test_only_states_that_there_are(self):
        params, _ = model()
        for optimizer, states in (
            (lowbit.jax.lion(1e-3), "m"),
            (lowbit.jax.adafactor(), "v"),
            (lowbit.jax.sm3(1e-3, None), "v"),
            (lowbit.jax.sm3(1e-3), "m v"),
            (lowbit.jax.factor(1e-3), "m v"),
        ):
            state = optimizer.init(params)
            found = [name for name in ("m", "v", "vmax") if getattr(state, name) is not None]
            self.assertEqual(" ".join(found), states)
        spec = {**json.loads(lowbit.Spec("adamw4").json), "amsgrad": True}
        self.assertEqual(len(lowbit.jax.adamw(1e-3, spec=spec).init(params).vmax.axes), 2)

    def test_structure_of_matrices_follows_from_the_spec(self):
        # What optax.tree_utils.tree_map_params relies on: its placeholder has no leaves.
        matrix = {"w": jnp.zeros((300, 257))}
        row = {"bits": 4, "normalization": "row", "mapping": "linear"}
        for spec in (
            *("adamw4", "adamw4-block", "factor4"),
            {"optimizer": "adamw", "m": {"bits": 32}, "v": row},
            {"optimizer": "adamw", "m": {"bits": 32}, "v": {**row, "normalization": "column"}},
            {"optimizer": "adamw", "m": {"bits": 32}, "v": {**row, "normalization": "tensor"}},
        ):
            optimizer = lowbit.jax.adamw(1e-3, spec=spec)
            placeholder, state = optimizer.init({}), optimizer.init(matrix)
            self.assertEqual(len(placeholder.v.axes), len(state.v.axes), spec)
            self.assertEqual(len(placeholder.m.axes), len(state.m.axes), spec)
        sm3 = lowbit.jax.sm3(1e-3)
        self.assertEqual(len(sm3.init({}).v.axes), len(sm3.init(matrix).v.axes))

    def test_f16(self):
        for dtypes in (("f16", "f16"), ("f16", "f32"), ("f32", "f16")):
            self.check(lowbit.jax.adamw(1e-3), dtypes=dtypes)


class TestWeights(unittest.TestCase):
    check = TestOptimizers.check

    def test_every_form_equals_the_reference(self):
        for form, dtype, beside in (
            ("stochastic", "bf16", jnp.float32),
            ("master", "f16", jnp.float32),
            ("remainder16", "bf16", jnp.uint16),
            ("correction8", "bf16", jnp.int8),
        ):
            with self.subTest(form=form):
                optimizer = lowbit.jax.adamw(1e-3, weights=form)
                state = self.check(optimizer, dtypes=(dtype, dtype), weights=form)
                self.assertEqual(state.weights["wte"].dtype, beside)
                shape = (1,) if form == "stochastic" else (300, 257)
                self.assertEqual(state.weights["wte"].shape, shape)

    def test_forms_by_name_by_tree_and_by_function(self):
        params = {**model("bf16")[0], "bias": np.zeros(257, np.float32)}
        tree = {key: "plain" if key == "bias" else "master" for key in params}

        def choose(params):
            return {key: "plain" if p.dtype == "float32" else "master" for key, p in params.items()}

        for weights in ("master", tree, choose):
            plan = lowbit.jax.adamw(1e-3, weights=weights).plan(params)
            self.assertEqual({t.name: t.weights for t in plan.tensors}, tree)
        self.assertIsNone(lowbit.jax.adamw(1e-3).init(params).weights)
        with self.assertRaisesRegex(lowbit.Error, "master do not exist for f32"):
            lowbit.jax.adamw(1e-3, weights={key: "master" for key in params}).init(params)

    def test_updates_are_refused(self):
        params, grads = model("bf16")
        optimizer = lowbit.jax.adamw(1e-3, weights="master")
        with self.assertRaisesRegex(jax.errors.JaxRuntimeError, "stepped in place"):
            step = step_function(optimizer, "update")
            jax.block_until_ready(step(to_jax(params), optimizer.init(params), to_jax(grads)))

    def test_donated_and_saved(self):
        params, grads = model("bf16", shapes=FULL)
        optimizer = lowbit.jax.adamw(1e-3, weights="remainder16")
        step = step_function(optimizer, donate=True)
        p, state = jax.block_until_ready((to_jax(params), optimizer.init(params)))
        before = pointers((p, state.m, state.v, state.weights))
        p, state = step(p, state, to_jax(grads))
        self.assertEqual(pointers((p, state.m, state.v, state.weights)), before)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "state.safetensors"
            lowbit.jax.save(path, optimizer, p, state)
            loaded = lowbit.jax.load(path, optimizer, p)
        for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(loaded), strict=True):
            self.assertTrue(same(left, right))


class TestMemory(unittest.TestCase):
    def test_donated_buffers_are_updated_in_place(self):
        for spec in PRESETS:
            with self.subTest(spec=spec):
                params, grads = model(shapes=FULL)
                optimizer = lowbit.jax.adamw(1e-3, spec=spec)
                step = step_function(optimizer, donate=True)
                p, state = jax.block_until_ready((to_jax(params), optimizer.init(params)))
                before = pointers((p, state.m, state.v))
                old = p, state
                p, state = step(p, state, to_jax(grads))
                self.assertEqual(pointers((p, state.m, state.v)), before)
                self.assertTrue(all(array.is_deleted() for array in jax.tree.leaves(old[0])))

    def test_donated_step_copies_nothing(self):
        params, grads = model(shapes=FULL)
        optimizer = lowbit.jax.adamw(1e-3)
        step = step_function(optimizer, donate=True)
        text = step.lower(params, optimizer.init(params), grads).compile().as_text()
        self.assertIn("lowbit_xla_step", text)
        self.assertNotIn(" copy(", text)

    def test_a_training_step_copies_no_gradient_for_its_updates(self):
        optimizer = lowbit.jax.adamw(1e-3)
        params = {"w": jnp.ones((257, 300))}

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, x):
            grads = jax.grad(lambda p: jnp.square(x @ p["w"]).sum())(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        copied = r"f32\[257,300\]\S* copy\("
        state = optimizer.init(params)
        text = step.lower(params, state, jnp.ones((8, 257))).compile().as_text()
        self.assertIn("lowbit_xla_step", text)
        self.assertNotRegex(text, copied)
        # Where the caller keeps them, they are.
        text = jax.jit(optimizer.update).lower(params, state, params).compile().as_text()
        self.assertRegex(text, copied)

    def test_inputs_are_intact_without_donation(self):
        params, grads = model()
        for door in ("apply", "update"):
            with self.subTest(door=door):
                optimizer = lowbit.jax.adamw(1e-3)
                inputs = to_jax(params), optimizer.init(params), to_jax(grads)
                before = jax.tree.map(lambda x: np.array(x), inputs)
                step = step_function(optimizer, door)
                first, second = step(*inputs), step(*inputs)
                for left, right in zip(jax.tree.leaves(before), jax.tree.leaves(inputs)):
                    self.assertTrue(same(left, right))
                for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
                    self.assertTrue(same(left, right))

    def test_gradients_may_be_the_parameters(self):
        params, _ = model()
        optimizer = lowbit.jax.adamw(1e-3)
        p = to_jax(params)
        result, _ = jax.jit(lambda p, s: optimizer.apply(p, s, p))(p, optimizer.init(p))
        _, want, _ = reference("adamw4", params, {k: v.copy() for k, v in params.items()}, 1)
        for key in params:
            self.assertTrue(same(result[key], want[key]), key)


class TestUpdate(unittest.TestCase):
    def test_parameter_plus_update_is_what_apply_gives(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(1e-3)
        inputs = to_jax(params), optimizer.init(params), to_jax(grads)
        new, state = step_function(optimizer)(*inputs)
        updates, state_of_update = step_function(optimizer, "update")(*inputs)
        for key in params:
            self.assertTrue(same(params[key] + np.asarray(updates[key]), new[key]), key)
        for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(state_of_update)):
            self.assertTrue(same(left, right))

    def test_updates_have_the_dtype_of_the_parameters(self):
        for dtypes in (("bf16", "f32"), ("f32", "bf16"), ("bf16", "bf16")):
            with self.subTest(dtypes=dtypes):
                params, grads = model(*dtypes)
                optimizer = lowbit.jax.adamw(1e-3)
                init, update = optimizer
                updates, _ = jax.jit(update)(to_jax(grads), init(params), to_jax(params))
                self.assertEqual(
                    jax.tree.map(lambda x: x.dtype, updates),
                    jax.tree.map(lambda x: x.dtype, params),
                )


class TestArguments(unittest.TestCase):
    def test_another_learning_rate_does_not_retrace(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(1e-3)
        step = step_function(optimizer, donate=True)
        for rate in (1e-3, 1e-2):
            p, _ = step(
                to_jax(params),
                optimizer.init(params),
                to_jax(grads),
                learning_rate=jnp.float32(rate),
            )
            _, want, _ = reference("adamw4", params, grads, 1, lr=rate)
            self.assertTrue(same(p["wte"], want["wte"]))
        self.assertEqual(step._cache_size(), 1)

    def test_schedule_sees_the_steps_done(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(
            lambda count: jnp.where(count == 0, 1e-3, 0.0), weight_decay=0.0
        )
        step = step_function(optimizer)
        first, state = step(to_jax(params), optimizer.init(params), to_jax(grads))
        second, _ = step(first, state, to_jax(grads))
        self.assertFalse(same(params["wte"], first["wte"]))
        self.assertTrue(same(first["wte"], second["wte"]))

    def test_mask_says_what_decays(self):
        params, grads = model()
        zero = {key: np.zeros_like(g) for key, g in grads.items()}
        masks = (
            {"bias": False, "conv": True, "empty": True, "scalar": False, "wte": True},
            lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        )
        for mask in masks:
            optimizer = lowbit.jax.adamw(1e-3, weight_decay=0.5, mask=mask)
            result, _ = step_function(optimizer)(to_jax(params), optimizer.init(params), zero)
            for key in ("bias", "conv", "wte"):
                self.assertEqual(same(result[key], params[key]), key == "bias", key)
        # What decays and what does not go into one call.
        lowered = step_function(optimizer).lower(params, optimizer.init(params), zero)
        self.assertEqual(lowered.as_text().count("@lowbit_xla_step"), 1)

    def test_clip_factor_and_grad_scale(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(1e-3)
        result, _ = step_function(optimizer)(
            to_jax(params),
            optimizer.init(params),
            to_jax(grads),
            grad_scale=jnp.float32(0.3),
            clip_factor=jnp.float32(0.7),
        )
        scales = {"grad_scale": 0.3, "clip_factor": 0.7}
        _, want, _ = reference("adamw4", params, grads, 1, **scales)
        self.assertTrue(same(result["wte"], want["wte"]))

    def test_skip_changes_nothing(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(1e-3)
        step = step_function(optimizer)
        inputs = to_jax(params), optimizer.init(params), to_jax(grads)
        result, state = step(*inputs, skip=jnp.bool_(True))
        for left, right in zip(jax.tree.leaves(inputs[0]), jax.tree.leaves(result)):
            self.assertTrue(same(left, right))
        self.assertEqual(int(state.count), 0)
        updates, _ = step_function(optimizer, "update")(*inputs, skip=jnp.bool_(True))
        self.assertFalse(any(np.any(np.asarray(u)) for u in updates.values()))

    def test_non_finite_gradients(self):
        shapes = {f"t{i:03}": (5000,) for i in range(70)}
        params, grads = model(shapes=shapes)
        grads["t069"][7] = np.nan
        for nonfinite, changed, counts in (
            ("default", {"t000", "t069"}, [1, 0]),
            ("skip_block", {"t000", "t069"}, [1, 0]),
            ("skip_tensor", {"t000"}, [0, 1]),
            ("skip_step", set(), [0, 70]),
        ):
            with self.subTest(nonfinite=nonfinite):
                optimizer = lowbit.jax.adamw(1e-3, nonfinite=nonfinite)
                result, state = step_function(optimizer)(
                    to_jax(params), optimizer.init(params), to_jax(grads)
                )
                for key in ("t000", "t069"):
                    self.assertEqual(same(result[key], params[key]), key not in changed, key)
                self.assertTrue(np.all(np.isfinite(result["t069"])))
                self.assertEqual(state.skipped.tolist(), counts)
                self.assertEqual(int(state.count), int(bool(changed)))

    def test_optimizer_may_be_made_inside_a_trace(self):
        params, grads = model()

        @jax.jit
        def step(params, grads, b1, weight_decay):
            optimizer = lowbit.jax.adamw(1e-3, b1=b1, weight_decay=weight_decay)
            return optimizer.apply(grads, optimizer.init(params), params)

        result, _ = step(params, grads, 0.8, 0.1)
        _, want, _ = reference("adamw4", params, grads, 1, beta1=0.8, weight_decay=0.1)
        self.assertTrue(same(result["wte"], want["wte"]))


class TestTransformations(unittest.TestCase):
    def test_vmap_gives_each_member_its_own_bits(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(1e-3)
        rates = jnp.array([1e-3, 1e-2, 1e-1], jnp.float32)
        many = jax.tree.map(lambda p: jnp.stack([p, 2 * p, 3 * p]), to_jax(params))

        def member(params, rate):
            state = optimizer.init(params)
            return optimizer.apply(to_jax(grads), state, params, learning_rate=rate)

        together = jax.jit(jax.vmap(member))(many, rates)
        for i in range(3):
            alone = jax.jit(member)(jax.tree.map(lambda p: p[i], many), rates[i])  # noqa: B023
            for left, right in zip(
                jax.tree.leaves(jax.tree.map(lambda p: p[i], together)),  # noqa: B023
                jax.tree.leaves(alone),
                strict=True,
            ):
                self.assertTrue(same(left, right))

    def test_optax_composes_it(self):
        params, grads = model(shapes=FULL)
        chain = optax.chain(optax.clip_by_global_norm(1.0), lowbit.jax.adamw(1e-3))
        updates, state = jax.jit(chain.update)(to_jax(grads), chain.init(params), to_jax(params))
        self.assertEqual(int(state[1].count), 1)
        masked = optax.masked(lowbit.jax.adamw(1e-3), {key: key != "bias" for key in FULL})
        updates, _ = jax.jit(masked.update)(to_jax(grads), masked.init(params), to_jax(params))
        self.assertTrue(same(updates["bias"], grads["bias"]))
        specs = optax.tree_utils.tree_map_params(
            lowbit.jax.adamw(1e-3),
            lambda _, name: name,
            lowbit.jax.adamw(1e-3).init(params),
            {key: key for key in FULL},
        )
        self.assertEqual(specs.v.axes[1]["wte"], "wte")

    def test_injected_hyperparameters_change_without_a_new_trace(self):
        params, grads = model()
        optimizer = optax.inject_hyperparams(lowbit.jax.adamw)(learning_rate=1e-3, b1=0.8)
        step = jax.jit(lambda g, s, p: optimizer.update(g, s, p))
        for rate in (1e-3, 1e-2):
            state = optimizer.init(params)
            state.hyperparams["learning_rate"] = jnp.float32(rate)
            updates, _ = step(to_jax(grads), state, to_jax(params))
            _, want, _ = reference("adamw4", params, grads, 1, lr=rate, beta1=0.8)
            self.assertTrue(same(params["wte"] + np.asarray(updates["wte"]), want["wte"]))
        self.assertEqual(step._cache_size(), 1)

    def test_float64_is_stepped_in_float32(self):
        enabled = (
            jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()
        )
        with enabled:
            params, grads = model(shapes={"wte": (300, 257)})
            wide = {"wte": jnp.asarray(params["wte"], jnp.float64)}
            optimizer = lowbit.jax.adamw(1e-3)
            state = optimizer.init(wide)
            updates, _ = optimizer.update(to_jax(grads), state, wide)
            self.assertEqual(updates["wte"].dtype, jnp.float64)
            with self.assertRaisesRegex(TypeError, "wte has dtype float64"):
                optimizer.apply(to_jax(grads), state, wide)

    def test_time_to_compile_a_thousand_tensors(self):
        params = {f"t{i:04}": jnp.zeros((16, 300)) for i in range(1000)}
        optimizer = lowbit.jax.adamw(1e-3)
        step, state = step_function(optimizer, donate=True), optimizer.init(params)
        start = time.perf_counter()
        lowered = step.lower(params, state, params)
        traced = time.perf_counter()
        compiled = lowered.compile()
        end = time.perf_counter()
        calls = compiled.as_text().count('custom_call_target="lowbit_xla_step"')
        self.assertEqual(calls, 16)
        print(
            f"\n1000 tensors in {calls} calls: traced in {traced - start:.1f} s, "
            f"compiled in {end - traced:.1f} s"
        )


class TestState(unittest.TestCase):
    def test_state_is_made_of_plain_arrays_with_elements(self):
        params, _ = model()
        state = lowbit.jax.adamw(1e-3).init(params)
        self.assertTrue(all(array.size > 0 for array in jax.tree.leaves(state)))
        self.assertEqual(jax.tree.structure(state.m.codes), jax.tree.structure(params))
        self.assertEqual(state.v.axes[1]["conv"].shape, (1,))  # 1728 elements: f32 states
        self.assertEqual(state.v.axes[1]["wte"].shape, (257,))
        doubled = jax.tree.map(lambda x: x + x, state)
        self.assertEqual(jax.tree.structure(doubled), jax.tree.structure(state))

    def test_init_under_eval_shape_and_jit(self):
        params, _ = model()
        optimizer = lowbit.jax.adamw(1e-3)
        state = optimizer.init(params)
        shapes = jax.eval_shape(optimizer.init, params)
        for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
            self.assertEqual((left.shape, left.dtype), (right.shape, right.dtype))
        jitted = jax.jit(optimizer.init)(params)
        self.assertEqual(jax.tree.structure(jitted), jax.tree.structure(state))

    def test_names_are_paths(self):
        params = {"layers": [{"w": jnp.zeros((2, 2))}, {"w": jnp.zeros((2, 2))}]}
        plan = lowbit.jax.adamw(1e-3).plan(params)
        self.assertEqual([t.name for t in plan.tensors], ["layers.0.w", "layers.1.w"])

    def test_an_override_applies_by_name(self):
        spec = {
            "optimizer": "adamw",
            "m": {"bits": 4, "normalization": "block", "mapping": "de"},
            "v": {"bits": 4, "normalization": "rank1", "mapping": "linear"},
            "overrides": [{"match": "*.embed", "m": {"bits": 32}, "v": {"bits": 32}}],
        }
        params = {"a": {"embed": jnp.zeros((100, 100)), "w": jnp.zeros((100, 200))}}
        state = lowbit.jax.adamw(1e-3, spec=spec).init(params)
        self.assertEqual(state.m.codes["a"]["embed"].shape, (1,))
        self.assertEqual(state.v.scales["a"]["embed"].shape, (100, 100))
        self.assertEqual(state.m.codes["a"]["w"].shape, (100, 100))


class TestCheckpoint(unittest.TestCase):
    def test_saved_state_continues_with_the_same_bits(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(1e-3)
        step = step_function(optimizer)
        p, state = step(to_jax(params), optimizer.init(params), to_jax(grads))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "state.safetensors"
            lowbit.jax.save(path, optimizer, p, state)
            loaded = lowbit.jax.load(path, optimizer, p)
        for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(loaded), strict=True):
            self.assertTrue(same(left, right))
        for left, right in zip(
            jax.tree.leaves(step(p, state, to_jax(grads))),
            jax.tree.leaves(step(p, loaded, to_jax(grads))),
        ):
            self.assertTrue(same(left, right))

    def test_a_file_with_its_tensors_in_another_order(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(1e-3)
        _, state = step_function(optimizer)(to_jax(params), optimizer.init(params), to_jax(grads))
        back = list(reversed(params))
        plan, want, buffers = reference(
            "adamw4", {key: params[key] for key in back}, {key: grads[key] for key in back}, 1
        )
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "state.safetensors"
            plan.save(path, buffers, 1)
            loaded = lowbit.jax.load(path, optimizer, params)
        for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(loaded), strict=True):
            self.assertTrue(same(left, right))

    def test_other_models_and_other_files_are_refused(self):
        params, _ = model()
        optimizer = lowbit.jax.adamw(1e-3)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "state.safetensors"
            lowbit.jax.save(path, optimizer, params, optimizer.init(params))
            other = {**params, "wte": np.zeros((300, 256), np.float32)}
            with self.assertRaisesRegex(lowbit.Error, "wte.*FORMAT_MISMATCH"):
                lowbit.jax.load(path, optimizer, other)
            renamed = {"x" + key: p for key, p in params.items()}
            with self.assertRaisesRegex(lowbit.Error, "FORMAT_MISMATCH"):
                lowbit.jax.load(path, optimizer, renamed)
            with self.assertRaisesRegex(lowbit.Error, "spec"):
                lowbit.jax.load(path, lowbit.jax.adamw(1e-3, spec="adamw32"), params)
            data = bytearray(path.read_bytes())
            data[-2000] ^= 1
            path.write_bytes(data)
            with self.assertRaisesRegex(lowbit.Error, "checksum"):
                lowbit.jax.load(path, optimizer, params)
            path.write_bytes(b"no checkpoint at all")
            with self.assertRaisesRegex(lowbit.Error, "FORMAT_MAGIC"):
                lowbit.jax.load(path, optimizer, params)


class TestErrors(unittest.TestCase):
    def test_what_is_wrong_is_named_before_anything_runs(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(1e-3)
        state = optimizer.init(params)
        with self.assertRaisesRegex(lowbit.Error, "adamw4-block"):
            lowbit.jax.adamw(1e-3, spec="adam")
        with self.assertRaisesRegex(ValueError, "skip_tensor"):
            lowbit.jax.adamw(1e-3, nonfinite="ignore")
        with self.assertRaisesRegex(ValueError, "the spec is for lion, not for adamw"):
            lowbit.jax.adamw(1e-3, spec="lion4")
        with self.assertRaisesRegex(ValueError, "the spec is for lion, not for adam"):
            lowbit.jax.adam(1e-3, spec="lion4")
        with self.assertRaisesRegex(lowbit.Error, "nesterov needs a dampening of 0"):
            lowbit.jax.sgdm(1e-3, nesterov=True, dampening=0.5)
        with self.assertRaisesRegex(ValueError, "state m: give momentum"):
            spec = {"optimizer": "adafactor", "m": {"bits": 32}, "v": {"bits": 32}}
            lowbit.jax.adafactor(1e-3, spec=spec)
        with self.assertRaisesRegex(TypeError, "mode"):
            lowbit.jax.lion(1e-3, mode="fast")
        with self.assertRaisesRegex(ValueError, "remainder16"):
            lowbit.jax.adamw(1e-3, weights="remainder")
        with self.assertRaisesRegex(ValueError, "weights of bias is False"):
            lowbit.jax.adamw(1e-3, weights=lambda p: {key: False for key in p}).init(params)
        with self.assertRaisesRegex(ValueError, "gradient of wte"):
            optimizer.apply({**grads, "wte": grads["wte"].T}, state, params)
        with self.assertRaisesRegex(ValueError, "pass params"):
            optimizer.update(grads, state, None)
        with self.assertRaisesRegex(TypeError, "parameter wte has dtype int32.*float16"):
            optimizer.init({"wte": np.zeros((2, 2), np.int32)})
        with self.assertRaisesRegex(lowbit.Error, "used twice"):
            optimizer.init({"a": {"b": np.zeros(2, np.float32)}, "a.b": np.zeros(2, np.float32)})

    def test_errors_of_the_handler_reach_python(self):
        params, grads = model()
        optimizer = lowbit.jax.adamw(1e-3, nonfinite="skip_block")
        with self.assertRaisesRegex(jax.errors.JaxRuntimeError, "SKIP_BLOCK, but the .* of wte"):
            jax.block_until_ready(
                step_function(optimizer)(to_jax(params), optimizer.init(params), to_jax(grads))
            )
        # The process and the handler go on.
        optimizer = lowbit.jax.adamw(1e-3)
        step_function(optimizer)(to_jax(params), optimizer.init(params), to_jax(grads))

    def raw_call(self, operands=None, results=None, **attributes):
        """The handler by hand, on one f32 tensor of 5 elements with f32 states."""
        plan = lowbit.Plan("adamw32", [lowbit.Tensor("w", (5,))])
        lowbit.jax._register()
        f32, i32 = jnp.float32, jnp.int32
        hyper, step, vector = jnp.ones(8, f32), jnp.ones((), i32), jnp.zeros(5, f32)
        operands = operands or [hyper, step] + [vector] * 4
        results = results or [jax.ShapeDtypeStruct((5,), f32)] * 3 + [
            jax.ShapeDtypeStruct((plan.scratch_bytes // 4,), i32),
            jax.ShapeDtypeStruct((2, 2), i32),
        ]
        given = {
            "plan": lowbit.jax._plan_json(plan, 1),
            "output": "param",
            "nonfinite": np.int32(0),
        }
        given = {key: value for key, value in {**given, **attributes}.items() if value is not None}
        call = jax.ffi.ffi_call("lowbit_xla_step", results)(*operands, **given)
        return jax.block_until_ready(call)

    def test_a_malformed_call_is_refused_with_its_reason(self):
        self.raw_call()  # not aliased: the handler copies
        f32, i32 = jnp.float32, jnp.int32
        hyper, step, vector = jnp.ones(8, f32), jnp.ones((), i32), jnp.zeros(5, f32)
        for arguments, reason in (
            ({"output": "both"}, 'output is "both"'),
            ({"output": np.int32(1)}, "attribute output has type"),
            ({"output": None}, "attribute output is missing"),
            ({"nonfinite": np.int32(9)}, "nonfinite is 9"),
            ({"nonfinite": "skip"}, "must be an int32 scalar"),
            ({"plan": "{"}, "attribute plan: EOF"),
            ({"operands": [hyper, step]}, "2 operands given; the plan has 6"),
            (
                {"operands": [hyper, step] + [vector] * 3 + [vector[:4]]},
                "state w/v/value has shape",
            ),
            ({"operands": [hyper, step, vector.astype(i32)] + [vector] * 3}, "params.0. .w. has"),
            ({"operands": [hyper[:7], step] + [vector] * 4}, "hyper has shape .7."),
            ({"results": [jax.ShapeDtypeStruct((5,), f32)] * 4}, "4 results given; the plan has 5"),
            (
                {"results": [jax.ShapeDtypeStruct((5,), f32)] * 3 + [jax.ShapeDtypeStruct((0,), i32)] * 2},
                "scratch has shape .0.; the plan needs .*or more",
            ),
        ):
            with self.subTest(reason=reason):
                with self.assertRaisesRegex(jax.errors.JaxRuntimeError, reason):
                    self.raw_call(**arguments)

    def test_a_panic_becomes_an_error(self):
        hooked = hasattr(library(), "lowbit_test_panic")
        self.assertTrue(hooked, "needs a library built with the feature test-hooks")
        with self.assertRaisesRegex(jax.errors.JaxRuntimeError, "a panic on purpose"):
            self.raw_call(output="panic")
        self.raw_call()


if __name__ == "__main__":
    unittest.main()
