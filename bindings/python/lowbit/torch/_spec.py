"""From keyword arguments to a spec: which quantizer each state of each tensor gets."""

import functools
import json

from torch import Tensor
from torch.nn import Module

from .. import core

#: What a state's quantizer may be called, besides its JSON form.
_FULL = {"bits": 32}


def resolve(spec, optimizer, *, m=None, v=None, threshold=None, seed=None, overrides=()):
    """A spec's JSON form as text: that of `spec` with everything else on top.

    spec: a preset's name, a spec's JSON form as a dict or as text, or a `lowbit.Spec`.
    optimizer: what the spec must be for: "adamw", "sgdm", ...; presets of AdamW serve Adam, too.
    m, v: a quantizer's JSON form; 32 or "fp32"; or the name of a normalization ("block", "rank1",
        "factored", ...) that replaces the spec's.
    overrides: pairs of a pattern of names and what `_override` takes.

    Raises ValueError if the spec is for another optimizer, lowbit.Error naming a key that is wrong.
    """
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        spec = json.loads(spec)
    found = json.loads(core.Spec(spec).json)
    if optimizer == "adam" and found["optimizer"] == "adamw":
        found["optimizer"] = "adam"
    if found["optimizer"] != optimizer:
        raise ValueError(f"the spec is for {found['optimizer']}, not for {optimizer}")
    for state, quantizer in (("m", m), ("v", v)):
        if quantizer is not None:
            found[state] = _quantizer(quantizer, found.get(state))
    if threshold is not None:
        found["threshold"] = threshold
    if seed is not None:
        found["seed"] = seed
    added = [{"match": match, **_override(choice, found)} for match, choice in overrides]
    if added:
        found["overrides"] = added + found.get("overrides", [])
    return core.Spec(found).json


def _quantizer(choice, present):
    if choice in (32, "fp32"):
        return _FULL
    if isinstance(choice, str):
        if present is None or present.get("bits") == 32:
            raise ValueError(f"the spec has no codes that {choice!r} could normalize: give a dict")
        kept = {key: present[key] for key in ("bits", "mapping", "rounding") if key in present}
        return {**kept, "normalization": choice}
    if isinstance(choice, dict):
        return choice
    raise TypeError(f"a quantizer is a dict, a normalization's name, or 32, not {choice!r}")


def _override(choice, spec):
    """The quantizers of one override: {"m": ..., "v": ...}, or the number of bits of all states
    (8 and 4: as in the presets)."""
    if isinstance(choice, dict):
        return choice
    states = [state for state in ("m", "v") if state in spec]
    if choice in (32, "fp32"):
        return {state: _FULL for state in states}
    if choice in (4, 8):
        family = "adamw" if spec["optimizer"] == "adam" else spec["optimizer"]
        preset = json.loads(core.Spec(f"{family}{choice}").json)
        return {state: preset[state] for state in states}
    raise TypeError(f"an override is a dict, or 4, 8 or 32 bits, not {choice!r}")


def named(overrides, params, names):
    """Overrides with patterns only: a module or a parameter becomes the names of those parameters
    of this group that it has.

    overrides: a dict or an iterable of pairs.
    params, names: of the group.
    """
    pairs = overrides.items() if isinstance(overrides, dict) else overrides
    found = []
    for key, choice in pairs:
        if isinstance(key, str):
            found.append((key, choice))
            continue
        if isinstance(key, Module):
            wanted = {id(param) for param in key.parameters()}
        elif isinstance(key, Tensor):
            wanted = {id(key)}
        else:
            raise TypeError(f"an override is for a pattern, a module or a parameter, not {key!r}")
        found += [
            (_literal(name), choice) for param, name in zip(params, names) if id(param) in wanted
        ]
    return found


def _literal(name):
    """The pattern that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


@functools.lru_cache(maxsize=1024)
def with_options(spec, options):
    """A spec's text with these options over its own.

    options: a tuple of pairs; a tuple of pairs as a value stands for a dict, whose keys are put
        over those of the spec.
    """
    found = json.loads(spec)
    for key, value in options:
        if isinstance(value, tuple):
            found[key] = {**found.get(key, {}), **dict(value)}
        else:
            found[key] = value
    return core.Spec(found).json
