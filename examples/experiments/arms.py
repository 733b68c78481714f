"""What is compared: quantizers of m and of v by name, and the optimizers made of them.

An arm is a preset's name, or "<m>+<v>" of the tables below, or one of NAMED. Widths are 4 bits
unless the name says otherwise.
"""

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
    # Scales corrected (ZE-EDEN with de0), subtractive dither (BReD).
    "b128/de0-eden": _v("b128", "de0", scale_correction=True),
    "b128/linear-dither": {**_v("b128", "linear"), "dither": True},
    # Fewer bits.
    "b128/geometric-log-3bit": _v("b128", "geometric", "stochastic-log", bits=3),
    "rank1/geometric-log-3bit": _v("rank1", "geometric", "stochastic-log", bits=3),
    "b128/geometric-log-2bit": _v("b128", "geometric", "stochastic-log", bits=2),
    "rank1/geometric-log-2bit": _v("rank1", "geometric", "stochastic-log", bits=2),
    "rank1/linear-3bit": _v("rank1", "linear", bits=3),
    "rank1/linear-2bit": _v("rank1", "linear", bits=2),
    "b128/de0-3bit": _v("b128", "de0", bits=3),
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
    if arm in NAMED:
        return NAMED[arm]
    if "+" in arm:
        m, v = arm.split("+")
        return {"optimizer": "adamw", "m": M[m], "v": V[v]}
    return arm
