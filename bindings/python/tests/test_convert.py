"""States of other packages, from the files in `foreign`, and back. Without torch they are read from
the arrays in the .npz files; with torch, torchao or bitsandbytes also by those: `cargo xtask peers
convert`."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import types
import unittest

import support

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowbit
from lowbit import convert

FOREIGN = pathlib.Path(__file__).parent / "foreign"
SHAPES = {"w": (8, 768), "odd": (17, 245), "b": (10,)}
LPMM = {**SHAPES, "f": (9, 512)}
SMALL = {"w": (6, 40), "odd": (3, 5, 7), "b": (10,)}


def arrays(name):
    """The arrays of a file as nested dicts, by their paths."""
    tree = {}
    with np.load(FOREIGN / f"{name}.npz") as file:
        for path in file.files:
            *folders, key = path.split("/")
            place = tree
            for folder in folders:
                place = place.setdefault(folder, {})
            place[key] = file[path]
    return tree


def state_dict(name, shapes=SHAPES):
    """The state dict of a file as the package gives it but with numpy's arrays, and what it decodes
    quantized states to, by parameter and key."""
    tree = arrays(name)
    decoded = tree.pop("decoded", {})
    for entry in tree.values():
        for key, value in entry.items():
            if isinstance(value, dict) and "codes" in value:
                entry[key] = types.SimpleNamespace(**value)
            if isinstance(value, dict) and "max_dims" in value.get("overhead", {}):
                value["overhead"]["max_dims"] = list(value["overhead"]["max_dims"].values())
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "params": list(range(len(shapes)))}
    state = {index: tree[param] for index, param in enumerate(shapes)}
    return {"state": state, "param_groups": [group]}, decoded


def lines(report):
    return {(kept.tensor, kept.state): kept for kept in report}


KEYS = {"exp_avg": "m", "exp_avg_sq": "v", "state1": "m", "state2": "v", "max_exp_avg_sq": "vmax"}


class TestImport(unittest.TestCase):
    def check_decoded(self, name, shapes=SHAPES, exact=True):
        """Under its own spec every state decodes to the package's own values."""
        source, decoded = state_dict(name, shapes)
        imported = convert.from_torch(source, shapes)
        self.assertEqual(imported.step, 3)
        plan, state, report = convert.to_lowbit(imported)
        print(f"\n{name}: {plan.spec.json[:200]}\n{report}")
        values = {
            key: plan.decompress(key, state) for key in dict.fromkeys(i.state for i in plan.buffers)
        }
        for i, param in enumerate(shapes):
            for key, state_name in KEYS.items():
                if key in source["state"][i]:
                    given = decoded.get(param, {}).get(key, source["state"][i][key])
                    same = support.same(values[state_name][i], given)
                    self.assertEqual(lines(report)[param, state_name].exact, same, (param, key))
                    if exact:
                        self.assertTrue(same, (param, key))
        return plan, state, report

    def test_torch(self):
        for name in ("torch", "amsgrad"):
            plan, state, report = self.check_decoded(name, SMALL)
            self.assertTrue(report.exact)
            self.assertEqual({kept.how for kept in report}, {"f32"})
        self.assertIn("amsgrad", json.loads(plan.spec.json))

    def test_torchao(self):
        for name in ("torchao4", "torchao8"):
            _, _, report = self.check_decoded(name)
            self.assertTrue(report.exact)
            for state in ("m", "v"):
                self.assertEqual(lines(report)["w", state].how, "copied")
                self.assertEqual(lines(report)["odd", state].how, "f32")

    def test_torchao_fp8(self):
        """The division of the table by 448 and the product of the scales round."""
        _, _, report = self.check_decoded("torchao-fp8", exact=False)
        for state in ("m", "v"):
            self.assertEqual(lines(report)["w", state].how, "copied")
            self.assertLess(lines(report)["w", state].error, 1e-7)

    def test_bitsandbytes(self):
        """Also the short block at the end of a tensor."""
        _, _, report = self.check_decoded("bitsandbytes")
        self.assertTrue(report.exact)
        for param in ("w", "odd"):
            self.assertEqual(lines(report)[param, "m"].how, "copied")

    def test_lpmm(self):
        shapes = LPMM
        plan, state, report = self.check_decoded("lpmm", shapes, exact=False)
        found = lines(report)
        self.assertTrue(found["w", "m"].exact and found["w", "v"].exact)
        self.assertEqual(found["w", "v"].source, "lpmm 4-bit rank-1")
        # Rows of 245 are no multiple of 128: their blocks run across rows.
        self.assertEqual(found["odd", "m"].how, "quantized")
        self.assertTrue(0 < found["odd", "m"].error < 0.2)
        self.assertEqual(found["f", "v"].how, "copied")
        self.assertLess(found["f", "v"].error, 1e-6)
        # The factors are what they were.
        of = {
            info.part: array
            for info, array in zip(plan.buffers, state)
            if (info.tensor, info.state) == (3, "v")
        }
        given = arrays("lpmm")["f"]
        self.assertTrue(support.same(of["rows"], given["exp_avg_sq_row"]))
        self.assertTrue(support.same(of["columns"], given["exp_avg_sq_col"]))

    def test_blocks_across_rows_are_kept_of_a_flat_parameter(self):
        source, decoded = state_dict("lpmm", LPMM)
        source["state"].pop(3)
        source["param_groups"][0]["params"].pop()
        imported = convert.from_torch(source, {**SHAPES, "odd": (17 * 245,)})
        plan, state, report = convert.to_lowbit(imported)
        self.assertTrue(report.exact)
        self.assertTrue(
            support.same(plan.decompress("m", state)[1], decoded["odd"]["exp_avg"].ravel())
        )

    def test_another_spec_is_quantized_to_with_its_error(self):
        source, decoded = state_dict("bitsandbytes")
        imported = convert.from_torch(source, SHAPES)
        plan, state, report = convert.to_lowbit(imported, "adamw4-block")
        kept = lines(report)["w", "m"]
        values = decoded["w"]["state1"].astype(np.float64)
        off = plan.decompress("m", state)[0] - values
        self.assertEqual((kept.how, kept.exact), ("quantized", False))
        self.assertAlmostEqual(kept.error, np.sqrt((off**2).sum() / (values**2).sum()))
        self.assertAlmostEqual(kept.largest, abs(off).max() / abs(values).max())
        self.assertIn("quantized", str(report))

    def test_what_a_spec_lacks_is_reported(self):
        source, _ = state_dict("amsgrad", SMALL)
        imported = convert.from_torch(source, SMALL)
        _, _, report = convert.to_lowbit(imported, "lion32")
        found = {key: kept.how for key, kept in lines(report).items() if key[0] == "w"}
        expected = {"m": "f32", "v": "dropped", "vmax": "dropped"}
        self.assertEqual(found, {("w", state): how for state, how in expected.items()})
        self.assertFalse(report.exact)

    def test_a_named_table_of_the_same_levels_takes_the_codes(self):
        """torchao's maps are the library's but for a last place here and there."""
        source, _ = state_dict("torchao4")
        _, _, report = convert.to_lowbit(convert.from_torch(source, SHAPES), "adamw4-block")
        for state in ("m", "v"):
            kept = lines(report)["w", state]
            self.assertEqual(kept.how, "copied")
            self.assertLess(kept.largest, 2e-7)

    def test_what_is_not_understood_is_named(self):
        def broken(change, message, shapes=SHAPES):
            source, _ = state_dict("bitsandbytes")
            change(source["state"][0])
            with self.assertRaisesRegex(ValueError, message):
                convert.from_torch(source, shapes)

        broken(lambda state: state.pop("absmax1"), "state1 of w: 8 bits without blocks")
        broken(lambda state: state.update(absmax1=np.ones(19)), "state1 of w: 19 scales of 6144")
        broken(
            lambda state: state.update(step=9), r"in their number of steps \(b 3, w 9\)|\(odd 3|w 9"
        )
        broken(lambda state: state.update(state1=np.ones(3)), "state m of w has shape \\(3,\\)")
        broken(lambda state: (state.clear(), state.update(sum=0)), "state of w has \\['sum'\\]")
        broken(
            lambda state: None, "parameter 2 has no name: 2 shapes", dict(list(SHAPES.items())[:2])
        )
        broken(lambda state: state.update(state1=np.ones(8, np.int32)), "dtype int32")
        broken(lambda state: state.update(qmap1=np.ones(9)), "state1 of w: code .* of a table of 9")

    def test_misfits_of_torchao_and_lpmm_are_named(self):
        def broken(name, change, message):
            source, _ = state_dict(name, LPMM if name == "lpmm" else SHAPES)
            change(source["state"][0])
            with self.assertRaisesRegex(ValueError, message):
                convert.from_torch(source, LPMM)

        def less(part):
            return lambda state: setattr(
                state["exp_avg"], part, getattr(state["exp_avg"], part).ravel()[:-1]
            )

        for name in ("torchao4", "torchao8", "torchao-fp8"):
            broken(name, less("codes"), "exp_avg of w: .* codes and .* scales of 6144")
            broken(name, less("scale"), "exp_avg of w: .* codes and .* scales of 6144")
        broken("torchao4", less("qmap"), "exp_avg of w: code 15 of a table of 15")
        m, v = "exp_avg_qstate", "exp_avg_sq_qstate"
        broken("lpmm", lambda state: state[m].update(qmap=None), "of w: quant_type linear")
        broken("lpmm", lambda state: state[m]["overhead"].pop("max1"), "of w: no scales are among")
        broken("lpmm", lambda state: state[v]["overhead"]["max_dims"].pop(), "do not fit its axes")
        broken("lpmm", lambda state: state.update(exp_avg=np.ones(9, np.int8)), "18 codes of 6144")

    def test_a_training_run_goes_on(self):
        """A step from imported f32 states is the step that torch takes, to rounding."""
        source, _ = state_dict("torch", SMALL)
        plan, state, _ = convert.to_lowbit(convert.from_torch(source, SMALL))
        params = [support.param(i, shape) for i, shape in enumerate(SMALL.values())]
        grads = [support.grad(i, shape) for i, shape in enumerate(SMALL.values())]
        stepped = [param.copy() for param in params]
        plan.step(stepped, grads, state, step=4, lr=1e-3)
        for i, (before, after, grad) in enumerate(zip(params, stepped, grads)):
            p, g = before.astype(np.float64), grad.astype(np.float64)
            m = 0.9 * source["state"][i]["exp_avg"] + 0.1 * g
            v = 0.999 * source["state"][i]["exp_avg_sq"] + 0.001 * g * g
            update = m / (1 - 0.9**4) / (np.sqrt(v / (1 - 0.999**4)) + 1e-8) + 0.01 * p
            np.testing.assert_allclose(after, p - 1e-3 * update, rtol=1e-5, atol=1e-8)

    def test_parameters_known_by_name_and_in_groups(self):
        source, _ = state_dict("torchao4")
        shapes = {"a[0]": SHAPES["w"], "b*": SHAPES["odd"], "a": SHAPES["b"]}
        state = {name: source["state"][i] for i, name in enumerate(shapes)}
        del state["a"]  # never stepped
        groups = [{"lr": 1.0, "params": ["a", "b*"]}, {"lr": 2.0, "params": ["a[0]"]}]
        imported = convert.from_torch({"state": state, "param_groups": groups}, shapes)
        plan, arrays, report = convert.to_lowbit(imported)
        self.assertEqual([tensor.group for tensor in plan.tensors], [1, 0, 0])
        self.assertEqual(imported.groups, [{"lr": 1.0}, {"lr": 2.0}])
        self.assertTrue(report.exact)
        self.assertEqual(len(report), 4)
        self.assertFalse(plan.decompress("v", arrays)[2].any())
        # With f32 states among coded ones by size, a pattern has to match one name alone.
        spec = convert.exact_spec(imported._replace(shapes={**shapes, "a": (100, 100)}))
        self.assertEqual([rule["match"] for rule in spec["overrides"]], ["a"])
        moments = {("a[0]", "m"): imported.moments["a[0]", "m"]}
        shapes = {"a[0]": SHAPES["w"], "a0": (100, 100)}
        other = convert.Imported(shapes, moments, 3, [{}], {})
        _, _, report = convert.to_lowbit(other)
        self.assertTrue(report.exact)

    def test_import_needs_neither_torch_nor_jax(self):
        code = "import sys, lowbit.convert; assert not {'torch', 'jax'} & set(sys.modules)"
        path = str(pathlib.Path(lowbit.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": path}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)


class TestExport(unittest.TestCase):
    def plan(self, name, spec=None, shapes=SHAPES):
        source, _ = state_dict(name, shapes)
        imported = convert.from_torch(source, shapes)
        plan, state, _ = convert.to_lowbit(imported, spec)
        return source, imported, plan, state

    def again(self, exported, shapes, plan, state):
        """What the exported dict is read back as holds the same values as the plan's states."""
        other, arrays, report = convert.to_lowbit(convert.from_torch(exported, shapes))
        self.assertTrue(report.exact)
        for name in ("m", "v"):
            for left, right in zip(plan.decompress(name, state), other.decompress(name, arrays)):
                self.assertTrue(support.same(left, right), name)

    def test_torch_and_back_is_the_same(self):
        source, imported, plan, state = self.plan("torch", shapes=SMALL)
        exported = convert.to_torch(plan, state, 3, imported.groups, tensor=np.asarray)
        for i, entry in source["state"].items():
            for key in ("exp_avg", "exp_avg_sq"):
                self.assertTrue(support.same(exported["state"][i][key], entry[key]))
            self.assertEqual(exported["state"][i]["step"], 3)
        self.assertEqual(exported["param_groups"][0]["params"], [0, 1, 2])
        self.assertEqual(exported["param_groups"][0]["betas"], (0.9, 0.999))
        with self.assertRaisesRegex(ValueError, "2 groups are given; the plan has 1"):
            convert.to_torch(plan, state, 3, [{}, {}], tensor=np.asarray)

    def test_torchao_and_back_is_the_same(self):
        def wrap(codes, scale, qmap, signed, shape, bits):
            return types.SimpleNamespace(codes=codes, scale=scale, qmap=qmap, signed=signed)

        for name in ("torchao4", "torchao8"):
            source, _, plan, state = self.plan(name)
            exported = convert.to_torchao(plan, state, 3, tensor=np.asarray, wrap=wrap)
            for key in ("exp_avg", "exp_avg_sq"):
                left, right = exported["state"][0][key], source["state"][0][key]
                for part in ("codes", "scale", "qmap"):
                    self.assertTrue(support.same(getattr(left, part), getattr(right, part)), part)
                self.assertTrue(support.same(exported["state"][1][key], source["state"][1][key]))
            self.again(exported, SHAPES, plan, state)

    def test_bitsandbytes_and_back_is_the_same(self):
        source, _, plan, state = self.plan("bitsandbytes")
        exported = convert.to_bitsandbytes(plan, state, 3, tensor=np.asarray)
        for i in range(3):
            for key in source["state"][i].keys() - {"step"}:
                left, right = exported["state"][i][key], source["state"][i][key]
                self.assertTrue(support.same(left, right), (i, key))
        self.again(exported, SHAPES, plan, state)

    def test_lpmm_and_back_is_the_same(self):
        shapes = LPMM
        source, _, plan, state = self.plan("lpmm", shapes=shapes)
        exported = convert.to_lpmm(plan, state, 3, tensor=np.asarray)
        for i, entry in source["state"].items():
            for key in ("exp_avg", "exp_avg_sq"):
                # Blocks of "odd" run across its rows, where lowbit's do not.
                if key not in entry or i == 1:
                    continue
                self.assertTrue(support.same(exported["state"][i][key], entry[key]), (i, key))
                given = entry[f"{key}_qstate"]
                qstate = exported["state"][i][f"{key}_qstate"]
                self.assertEqual(qstate["enable"], "overhead" in given)
                if qstate["enable"]:
                    self.assertTrue(support.same(qstate["qmap"], given["qmap"]))
                    self.check_overhead(qstate["overhead"], given["overhead"])
        for key in ("exp_avg_sq_row", "exp_avg_sq_col"):
            self.assertTrue(support.same(exported["state"][3][key], source["state"][3][key]))
        again = convert.from_torch(exported, shapes)
        for name in ("m", "v"):
            for (key, shape), values in zip(shapes.items(), plan.decompress(name, state)):
                found = again.moments[key, name].values.astype(np.float32)
                self.assertEqual(found.shape, shape)
                np.testing.assert_allclose(found, values, rtol=1e-6 if key == "f" else 0)

    def check_overhead(self, found, given):
        self.assertEqual(tuple(found["scaled_shape"]), tuple(given["scaled_shape"]))
        for part in ("max1", "max_dims"):
            left, right = found.get(part), given.get(part)
            pairs = zip(left, right) if part == "max_dims" and right else [(left, right)]
            for left, right in pairs:
                self.assertTrue(left is right or support.same(left, right), part)

    def test_what_has_no_place_becomes_f32(self):
        """Rank-1 and dithered states in torchao, 4 bits in bitsandbytes."""
        block = {"bits": 4, "normalization": "block", "block": 128, "dither": True}
        dithered = {
            "optimizer": "adamw",
            "threshold": 0,
            "m": {**block, "mapping": "linear-with-zero"},
            "v": {"bits": 4, "normalization": "rank1", "mapping": "linear"},
        }
        _, _, plan, state = self.plan("torch", dithered, SMALL)
        for export in (convert.to_torchao, convert.to_bitsandbytes):
            exported = export(plan, state, 3, tensor=np.asarray)
            self.assertEqual({type(x) for x in exported["state"][0].values()} - {int}, {np.ndarray})
            self.again(exported, SMALL, plan, state)

    def test_random_plans_there_and_back(self):
        """What is exported decodes to the plan's own values."""
        random = np.random.default_rng(3)

        def quantizer(second):
            mappings = ["de", "linear", "linear-with-zero", "power2"]
            rank1 = second and random.random() < 0.2
            blocks = {"normalization": "block", "block": int(32 << random.integers(0, 6))}
            return {
                "bits": int(random.integers(2, 9)),
                "mapping": str(random.choice(mappings + (["de0"] if second else []))),
                **({"normalization": "rank1"} if rank1 else blocks),
            }

        def wrap(codes, scale, qmap, signed, shape, bits):
            return types.SimpleNamespace(codes=codes, scale=scale, qmap=qmap)

        coded = 0
        for _ in range(150):
            spec = {"optimizer": "adamw", "threshold": 300, "m": quantizer(False)}
            spec["v"] = quantizer(True)
            shapes = {
                name: tuple(int(2 ** random.uniform(0, 8)) for _ in range(random.integers(1, 4)))
                for name in "ab"
            }
            shapes["c"] = (8, int(random.choice([64, 256, 512])))
            shapes = {name: shape for name, shape in shapes.items() if np.prod(shape) < 60_000}
            plan = lowbit.Plan(spec, [lowbit.Tensor(*item) for item in shapes.items()])
            state = plan.zeros()
            for name in ("m", "v"):
                values = [np.float32(random.normal(size=shape)) for shape in shapes.values()]
                plan.compress(name, [x * x if name == "v" else x for x in values], state)
            for exported in (
                convert.to_torchao(plan, state, 3, tensor=np.asarray, wrap=wrap),
                convert.to_bitsandbytes(plan, state, 3, tensor=np.asarray),
                convert.to_lpmm(plan, state, 3, tensor=np.asarray),
            ):
                imported = convert.from_torch(exported, shapes)
                coded += sum(moment.coded is not None for moment in imported.moments.values())
                for name in ("m", "v"):
                    for key, decoded in zip(shapes, plan.decompress(name, state)):
                        values = imported.moments[key, name].values
                        self.assertTrue(support.same(values, decoded), (spec, shapes))
        print(f"\n150 random plans, {coded} states exported as codes")
        self.assertGreater(coded, 100)

    def test_only_adam(self):
        plan = lowbit.Plan("lion4", [lowbit.Tensor("w", (3,))])
        with self.assertRaisesRegex(ValueError, "states are \\['m'\\]"):
            convert.to_torch(plan, plan.zeros(), 1, tensor=np.asarray)


class TestOptax(unittest.TestCase):
    def test_there_and_back(self):
        params = {"a": jnp.ones((3, 5)), "b": [jnp.zeros(7), jnp.full((2, 2), 2.0)]}
        grads = {"a": jnp.full((3, 5), 0.25), "b": [jnp.ones(7), -jnp.ones((2, 2))]}
        optimizer = optax.adamw(lambda count: 1e-3 / (1 + count))
        state = optimizer.init(params)
        for _ in range(3):
            _, state = optimizer.update(grads, state, params)
        imported = convert.from_optax(state)
        self.assertEqual(imported.step, 3)
        self.assertEqual(imported.shapes, {"a": (3, 5), "b.0": (7,), "b.1": (2, 2)})
        plan, arrays, report = convert.to_lowbit(imported)
        self.assertTrue(report.exact)
        back = convert.to_optax(plan, arrays, 3, optimizer.init(params))
        for left, right in zip(jax.tree.leaves(back), jax.tree.leaves(state)):
            self.assertTrue(support.same(left, right))
        with self.assertRaisesRegex(ValueError, "0 parts with count, mu and nu"):
            convert.from_optax(optax.sgd(1.0).init(params))


@unittest.skipUnless(
    importlib.util.find_spec("torch"), "torch is not installed: only arrays are read"
)
class TestTorch(unittest.TestCase):
    """With the packages themselves."""

    def test_files_of_torch(self):
        for name in ("torch", "amsgrad", "bitsandbytes"):
            shapes = SHAPES if name == "bitsandbytes" else SMALL
            self.check_file(name, shapes)

    @unittest.skipUnless(importlib.util.find_spec("torchao"), "torchao is not installed")
    def test_files_of_torchao(self):
        for name in ("torchao4", "torchao8", "torchao-fp8"):
            self.check_file(name, SHAPES)

    def check_file(self, name, shapes):
        """The .pt file gives what its arrays give."""
        loaded = convert.from_torch(convert.load(FOREIGN / f"{name}.pt"), shapes)
        given = convert.from_torch(state_dict(name, shapes)[0], shapes)
        self.assertEqual(loaded.moments.keys(), given.moments.keys())
        for key, moment in given.moments.items():
            self.assertTrue(support.same(loaded.moments[key].values, moment.values), key)

    def test_code_in_a_file_does_not_run(self):
        import pickle

        import torch

        class Code:
            def __reduce__(self):
                return print, ("this must not be printed",)

        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "bad.pt"
            torch.save({"state": Code()}, path)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), self.assertRaises(pickle.UnpicklingError):
                convert.load(path)
            self.assertEqual(printed.getvalue(), "")

    def test_torch_takes_what_is_written(self):
        import torch

        source = convert.from_torch(convert.load(FOREIGN / "torch.pt"), SMALL)
        plan, state, _ = convert.to_lowbit(source)
        params = [torch.nn.Parameter(torch.ones(shape)) for shape in SMALL.values()]
        optimizer = torch.optim.AdamW(params)
        optimizer.load_state_dict(convert.to_torch(plan, state, 3, source.groups))
        for param in params:
            param.grad = torch.full_like(param, 0.5)
        optimizer.step()
        self.assertEqual(optimizer.state_dict()["state"][0]["step"], 4)

    @unittest.skipUnless(importlib.util.find_spec("torchao"), "torchao is not installed")
    def test_torchao_takes_what_is_written(self):
        import torch
        import torchao.optim

        for name, create in (
            ("torchao4", torchao.optim.AdamW4bit),
            ("torchao8", torchao.optim.AdamW8bit),
        ):
            saved = convert.load(FOREIGN / f"{name}.pt")
            plan, state, _ = convert.to_lowbit(convert.from_torch(saved, SHAPES))
            params = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES.values()]
            optimizer = create(params)
            optimizer.load_state_dict(convert.to_torchao(plan, state, 3))
            kept = optimizer.state[params[0]]["exp_avg"]
            self.assertTrue(torch.equal(kept.codes, saved["state"][0]["exp_avg"].codes))
            for param in params:
                param.grad = torch.full_like(param, 0.5)
            optimizer.step()

    @unittest.skipUnless(importlib.util.find_spec("bitsandbytes"), "bitsandbytes is not installed")
    def test_bitsandbytes_takes_what_is_written(self):
        import bitsandbytes
        import torch

        plan, state, _ = convert.to_lowbit(
            convert.from_torch(convert.load(FOREIGN / "bitsandbytes.pt"), SHAPES)
        )
        params = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES.values()]
        optimizer = bitsandbytes.optim.AdamW8bit(params)
        optimizer.load_state_dict(convert.to_bitsandbytes(plan, state, 3))
        for param in params:
            param.grad = torch.full_like(param, 0.5)
        optimizer.step()
        self.assertEqual(optimizer.state[params[0]]["state1"].dtype, torch.uint8)
        self.assertEqual(optimizer.state[params[0]]["step"], 4)

    def test_a_file_of_lpmm(self):
        import torch

        source = convert.from_torch(state_dict("lpmm", LPMM)[0], LPMM)
        plan, state, _ = convert.to_lowbit(source)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "lpmm.pt"
            torch.save(convert.to_lpmm(plan, state, 3), path)
            again = convert.from_torch(convert.load(path), LPMM)
        self.assertTrue(
            support.same(again.moments["w", "v"].values, source.moments["w", "v"].values)
        )

    def test_command(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "shapes.json").write_text(json.dumps(SMALL), encoding="utf-8")
            command = [sys.executable, "-m", "lowbit.convert", str(FOREIGN / "torch.pt")]
            command += [
                str(folder / "shapes.json"),
                str(folder / "state"),
                "--spec",
                "adamw4-block",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            self.assertIn("3 steps", done.stdout)
            plan = lowbit.Plan("adamw4-block", [lowbit.Tensor(*item) for item in SMALL.items()])
            self.assertEqual(plan.load(folder / "state", plan.zeros()), 3)


if __name__ == "__main__":
    unittest.main()
