"""What is compared: quantizers of m and of v by name, and the optimizers made of them.

An arm is a preset's name, or "<m>+<v>" of the tables below, or one of NAMED, and may end in
"@<factor>lr". Widths are 4 bits unless the name says otherwise.
"""

#: Levels for m fitted to its real values by `run.py e5 fit`: from zero up, symmetric, weighted by
#: what an error does to the update.
_FITTED = (0.07755, 0.1627, 0.26028, 0.37458, 0.51417, 0.69558, 1.0)
#: Nine from zero up, as NF4 has.
_FITTED_UP = (0.06697, 0.1391, 0.21946, 0.3118, 0.41996, 0.55099, 0.72079, 1.0)
#: Levels for v in blocks of 128 and rank-1, fitted likewise, in log v.
_FITTED_B128 = (
    *(0.00716, 0.01478, 0.02577, 0.04016, 0.0581, 0.07998, 0.10568, 0.1353),
    *(0.16941, 0.20907, 0.25698, 0.31622, 0.3927, 0.49887, 0.66329, 1.0),
)
_FITTED_RANK1 = (
    *(0.00914, 0.02204, 0.03948, 0.05892, 0.08256, 0.1096, 0.13993, 0.17442),
    *(0.21316, 0.25805, 0.31081, 0.37422, 0.45362, 0.55754, 0.71146, 1.0),
)


def _symmetric(up, down=None):
    return [*(-x for x in reversed(down or up)), 0.0, *up]


M = {
    "de": {"bits": 4, "normalization": "block", "block": 128, "mapping": "de"},
    "de-b2048": {"bits": 4, "normalization": "block", "block": 2048, "mapping": "de"},
    "de-b64": {"bits": 4, "normalization": "block", "block": 64, "mapping": "de"},
    "de-rank1": {"bits": 4, "normalization": "rank1", "mapping": "de"},
    "de-sr": {
        "bits": 4,
        "normalization": "block",
        "block": 128,
        "mapping": "de",
        "rounding": "stochastic",
    },
    "de-eden": {
        "bits": 4,
        "normalization": "block",
        "block": 128,
        "mapping": "de",
        "scale_correction": True,
    },
    "nf4": {"bits": 4, "normalization": "block", "block": 128, "mapping": "nf4"},
    "nf4-b64": {"bits": 4, "normalization": "block", "block": 64, "mapping": "nf4"},
    "nf4-b32": {"bits": 4, "normalization": "block", "block": 32, "mapping": "nf4"},
    "nf4-rank1": {"bits": 4, "normalization": "rank1", "mapping": "nf4"},
    "nf4-sr": {
        "bits": 4,
        "normalization": "block",
        "block": 128,
        "mapping": "nf4",
        "rounding": "stochastic",
    },
    "nf4-eden": {
        "bits": 4,
        "normalization": "block",
        "block": 128,
        "mapping": "nf4",
        "scale_correction": True,
    },
    "fit15": {
        "bits": 4,
        "normalization": "block",
        "block": 128,
        "mapping": "table",
        "levels": _symmetric(_FITTED),
    },
    "fit16": {
        "bits": 4,
        "normalization": "block",
        "block": 128,
        "mapping": "table",
        "levels": _symmetric(_FITTED_UP, _FITTED),
    },
    "8bit": {"bits": 8, "normalization": "block", "block": 256, "mapping": "de"},
    "f32": {"bits": 32},
}


def _v(normalization, mapping, rounding="nearest", bits=4, **more):
    return {"bits": bits, "mapping": mapping, "rounding": rounding, **_norm(normalization), **more}


def _norm(name):
    if name.startswith("b"):
        return {"normalization": "block", "block": int(name[1:])}
    return {"normalization": name}


V = {
    # With a zero: the controls.
    "b2048/de": _v("b2048", "de"),
    "b128/de": _v("b128", "de"),
    "b128/de-sr": _v("b128", "de", "stochastic"),
    "b128/linear0": _v("b128", "linear-with-zero"),
    "rank1/linear0": _v("rank1", "linear-with-zero"),
    "rank1/de": _v("rank1", "de"),
    # Without.
    "b2048/de0": _v("b2048", "de0"),
    "b128/de0": _v("b128", "de0"),
    "b64/de0": _v("b64", "de0"),
    "rank1/de0": _v("rank1", "de0"),
    "b128/linear": _v("b128", "linear"),
    "rank1/linear": _v("rank1", "linear"),
    "b128/power2": _v("b128", "power2"),
    "rank1/power2": _v("rank1", "power2"),
    "b128/power3": _v("b128", "power3"),
    "b128/geometric": _v("b128", "geometric"),
    "rank1/geometric": _v("rank1", "geometric"),
    "b128/fit": _v("b128", "table", levels=_FITTED_B128),
    "rank1/fit": _v("rank1", "table", levels=_FITTED_RANK1),
    # At random: in the state, in log v, in the preconditioner (ZIP-SR where the table has a zero).
    "rank1/linear-sr": _v("rank1", "linear", "stochastic"),
    "b128/linear-log": _v("b128", "linear", "stochastic-log"),
    "rank1/linear-log": _v("rank1", "linear", "stochastic-log"),
    "b128/de0-log": _v("b128", "de0", "stochastic-log"),
    "rank1/de0-log": _v("rank1", "de0", "stochastic-log"),
    "b128/geometric-log": _v("b128", "geometric", "stochastic-log"),
    "b64/geometric-log": _v("b64", "geometric", "stochastic-log"),
    "rank1/geometric-log": _v("rank1", "geometric", "stochastic-log"),
    "b128/de-zip": _v("b128", "de", "stochastic-preconditioner"),
    "b128/de0-zip": _v("b128", "de0", "stochastic-preconditioner"),
    "rank1/de0-zip": _v("rank1", "de0", "stochastic-preconditioner"),
    "b128/geometric-zip": _v("b128", "geometric", "stochastic-preconditioner"),
    "rank1/geometric-zip": _v("rank1", "geometric", "stochastic-preconditioner"),
    "rank1/linear-zip": _v("rank1", "linear", "stochastic-preconditioner"),
    "rank1/power2-sr": _v("rank1", "power2", "stochastic"),
    "b128/power2-log": _v("b128", "power2", "stochastic-log"),
    "rank1/power2-log": _v("rank1", "power2", "stochastic-log"),
    "rank1/power2-zip": _v("rank1", "power2", "stochastic-preconditioner"),
    # Scales corrected (ZE-EDEN with de0), subtractive dither (BReD).
    "b128/de0-eden": _v("b128", "de0", scale_correction=True),
    "b128/power2-eden": _v("b128", "power2", scale_correction=True),
    "b128/linear-dither": {**_v("b128", "linear"), "dither": True},
    # Fewer bits.
    "b128/geometric-log-3bit": _v("b128", "geometric", "stochastic-log", bits=3),
    "rank1/geometric-log-3bit": _v("rank1", "geometric", "stochastic-log", bits=3),
    "b128/geometric-log-2bit": _v("b128", "geometric", "stochastic-log", bits=2),
    "rank1/geometric-log-2bit": _v("rank1", "geometric", "stochastic-log", bits=2),
    "rank1/linear-3bit": _v("rank1", "linear", bits=3),
    "rank1/linear-2bit": _v("rank1", "linear", bits=2),
    "rank1/power2-3bit": _v("rank1", "power2", bits=3),
    "rank1/power2-2bit": _v("rank1", "power2", bits=2),
    "rank1/power2-log-3bit": _v("rank1", "power2", "stochastic-log", bits=3),
    # Not codes, or many.
    "factored": _v("factored", "linear"),
    "8bit": _v("b256", "de", bits=8),
    "8bit-de0": _v("b256", "de0", bits=8),
    "f32": {"bits": 32},
}

#: 8 bits as first published (Dettmers et al. 2022).
NAMED = {
    "adamw8-b2048": {
        "optimizer": "adamw",
        "m": {"bits": 8, "normalization": "block", "block": 2048, "mapping": "de"},
        "v": {"bits": 8, "normalization": "block", "block": 2048, "mapping": "de"},
    },
}


def spec(arm):
    """What `lowbit.Spec` takes for an arm."""
    arm = arm.partition("@")[0]
    if arm in NAMED:
        return NAMED[arm]
    if "+" in arm:
        m, v = arm.split("+")
        return {"optimizer": "adamw", "m": M[m], "v": V[v]}
    return arm


def lr_factor(arm):
    """An arm may end in "@0.7lr": a change that a comparison must see."""
    return float(arm.partition("@")[2].removesuffix("lr") or 1)
