"""Every number of every configuration is in its range, or refused by name in one line."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from recursia import config, kinds, settings
from recursia.errors import ConfigError
from tests.helpers.runs import values

ODD = (float("nan"), float("inf"), float("-inf"), "1e400", "nan", -1, 0, 2**31, 2**40, 10**30)
ODD += (10**400, "sNaN", "9" * 5000, "1e-999999999")
PART = {"num_heads": 2, "head_dim": 8, "mlp_dim": 32, "expert_dim": 8, "num_kv_heads": 1}
PART |= {"rank": 2, "feedforward": {"kind": "swiglu", "mlp_dim": 32}}
PART |= {"num_experts": 4, "top_k": 2, "num_attention_experts": 4, "attention_top_k": 2}
PART |= {"num_keys": 4, "key_dim": 8, "value_dim": 8}
SECTION = {"depth": {"num_recursions": 2, "high_cycles": 1, "low_backprop": (1,)}, "mixer": PART}
PARTS = {"num_shared": 1, "budget": 0.5, "ratio": 0.5}  # of weights made of parts
SECTION |= {"weights": {"rank": 2, "num_atoms": 2, **PARTS}, "feedforward": PART, "block": {}}
SECTION |= {"optimizer": {}, "parameterisation": {"base_width": 8, "base_layers": 1}}
HEADS = {"kind": "grouped_query", "num_heads": 2, "num_kv_heads": 2, "head_dim": 4}
SECTION |= {"embed": {"table_dim": 8, "mixer": HEADS, "num_positions": 16}}


def place(field):
    """Returns where a part stands."""
    section = {"mixer": ("model", "block"), "feedforward": ("model", "block"), "optimizer": ()}
    return (*section.get(field, ("model",)), field)


def plain(folder, field="depth", kind="fixed"):
    """Returns a run as plain values, with one of its parts of another kind."""
    cls = kinds.config_class(field, kind)
    names = {f.name for f in dataclasses.fields(cls)}
    part = {"kind": kind} | {k: v for k, v in SECTION[field].items() if k in names}
    given = values(
        folder, "fixed", model={"inject": {"input": "add"}} if kind == "recurrent" else {}
    )
    if field == "block":
        part = given["model"]["block"] | part
    given = changed(given, place(field), part)
    if getattr(cls, "uses", ()):  # a mixer that uses experts
        experts = {"kind": "sigma_moe", "num_experts": 4, "top_k": 2}
        given = changed(given, place("feedforward"), experts)
    return config.to_dict(config.build(settings.Run, given, "config"))


def numbers(tree, path=()):
    """Yields where numbers, and what may be one, stand in plain values."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from numbers(value, (*path, name))
        elif isinstance(value, tuple):
            if value and isinstance(value[0], int | float):
                yield (*path, name)
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield (*path, name)


def changed(tree, path, value):
    first, *rest = path
    of = tree.get(first)
    return {**tree, first: changed(of, rest, value) if rest else (value,) * is_list(of) or value}


def at(tree, path):
    return functools.reduce(lambda tree, name: tree[name], path, tree)


def is_list(value):
    return len(value) if isinstance(value, tuple) else 0


FIELDS = dict(reversed([(base, field) for field, base in kinds.BASES.items()]))  # one of each base
KINDS = [(field, kind) for field in FIELDS.values() for kind in kinds.names(field)]


@pytest.mark.few(10)
@pytest.mark.parametrize(("field", "kind"), KINDS)
def test_a_number_out_of_range_is_refused_by_name(tmp_path, field, kind):
    given = plain(tmp_path, field, kind)
    whole = (field, kind) == ("depth", "fixed")
    inner = [n for n in numbers(at(given, place(field))) if field != "block" or len(n) == 1]
    places = list(numbers(given)) if whole else [(*place(field), *n) for n in inner]
    known = {f.path for f in config.fields(config.build(settings.Run, given, "config"))}
    for path in places:
        for odd in ODD:
            odd = config.Raw(odd) if isinstance(odd, str) else odd
            try:
                run = config.build(settings.Run, changed(given, path, odd), "config")
            except ConfigError as refusal:
                said = str(refusal)
                named = re.match(r"config\.([\w.]+): ", said)
                assert named and named[1] in known, said
                assert "\n" not in said
            else:
                assert np.isfinite(float(odd)), (path, odd)
                assert not isinstance(at(given, path), int) or float(odd) < 2**32, (path, odd)
                assert config.build(settings.Run, config.to_dict(run), "config") == run


def test_every_seed_is_one_of_its_own_and_the_same_inside_a_program():
    inside = jax.jit(lambda seed: jax.random.key_data(jax.random.key(seed)))
    seeds = (0, 5, 2**31 - 1, 2**31 + 5, 2**32 - 1)
    drawn = [tuple(np.asarray(jax.random.key_data(jax.random.key(seed)))) for seed in seeds]
    assert drawn == [tuple(np.asarray(inside(np.uint32(seed)))) for seed in seeds]
    assert len(set(drawn)) == len(seeds)
