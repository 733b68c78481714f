"""What is compared: quantizers of m and of v by name, and the optimizers made of them.

An arm is a preset's name, or "<m>+<v>" of the tables below (AdamW), or "sgdm:<m>" or "lion:<m>", or one
of NAMED, and may end in "@<factor>lr". Widths are 4 bits unless the name says otherwise.
"""

#: Tables that `run.py fit` found for m, from zero up, and for v.
_M8 = (0.07451, 0.1569, 0.2549, 0.3686, 0.5059, 0.6902, 1.0)
_M9 = (0.06667, 0.1373, 0.2157, 0.3059, 0.4118, 0.5412, 0.7176, 1.0)
_V_B128 = (
    *(0.008052, 0.01815, 0.03205, 0.04812, 0.06844, 0.09219, 0.1176, 0.1501),
    *(0.1815, 0.2194, 0.2652, 0.3205, 0.3981, 0.508, 0.6844, 1.0),
)
_V_RANK1 = (
    *(0.008733, 0.02254, 0.03981, 0.05977, 0.085, 0.1145, 0.1461, 0.1766),
    *(0.2135, 0.2581, 0.312, 0.3771, 0.4559, 0.551, 0.7032, 1.0),
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
    "nf4-rank1-sr": {
        "bits": 4,
        "normalization": "rank1",
        "mapping": "nf4",
        "rounding": "stochastic",
    },
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
    "fitted8": {
        "bits": 4,
        "normalization": "block",
        "block": 128,
        "mapping": "table",
        "levels": _symmetric(_M8),
    },
    "fitted9-sr": {
        "bits": 4,
        "normalization": "block",
        "block": 128,
        "mapping": "table",
        "levels": _symmetric(_M9, _M8),
        "rounding": "stochastic",
    },
    "nf4-b64-sr": {
        "bits": 4,
        "normalization": "block",
        "block": 64,
        "mapping": "nf4",
        "rounding": "stochastic",
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
    "b128/fitted": _v("b128", "table", levels=_V_B128),
    "rank1/fitted": _v("rank1", "table", levels=_V_RANK1),
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


#: Optimizers of m alone, and their learning rates as a multiple of AdamW's, chosen on 32 bits.
RATES = {"sgdm": 50, "lion": 0.6}


def yardstick(arm):
    """The arm in 32 bits that an arm is compared with."""
    return f"{_optimizer(arm)}32"


def _optimizer(arm):
    return next((name for name in RATES if arm.startswith(name)), "adamw")


def spec(arm):
    """What `lowbit.Spec` takes for an arm."""
    arm = arm.partition("@")[0]
    if ":" in arm:
        optimizer, m = arm.split(":")
        return {"optimizer": optimizer, "m": M[m]}
    if arm in NAMED:
        return NAMED[arm]
    if "+" in arm:
        m, v = arm.split("+")
        return {"optimizer": "adamw", "m": M[m], "v": V[v]}
    return arm


def lr_factor(arm):
    """An arm may end in "@0.7lr": a change that a comparison must see."""
    change = float(arm.partition("@")[2].removesuffix("lr") or 1)
    return change * RATES.get(_optimizer(arm), 1)
