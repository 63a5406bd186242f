"""A bank of heads: each step is made of those that its map names, and nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, model
from recursia import params as parameters
from recursia.sharing.heads import Heads
from recursia.sharing.tied import Tied
from tests.helpers.flops import assert_exact
from tests.helpers.flops import tiny as flat
from tests.helpers.tiny import assert_close, draw, forward, is_equal, text, tiny

STEPS, KEY_HEADS = 6, 2
PRIVATE = dict.fromkeys(("norms", "attention", "mlp"), "recursion+block")
# Heads of other places, of other steps, and twice in one step.
MAP = (((0, 1), (2, 0)), ((1, 3), (3, 3)), ((2, 1), (0, 2)))


def build(num_shared=0, **varies):
    """Returns six layers of their own but for heads."""
    how = tuple((PRIVATE | varies).items())
    return dataclasses.replace(tiny(), varies=how, weights=Heads(num_shared))


def by_hand(made, params):
    """Returns the vanilla model with these heads, side by side in the order of the map."""
    core = dict(params["core"])
    bank = core.pop("attention_heads")
    cells = np.array(dict(made.schedule.entries)["attention_heads"]).reshape(STEPS, -1)
    axes = {"query": 1, "key": 1, "value": 1, "out": 0}  # of heads, in one step's array
    beside = lambda name, cell: jnp.concatenate([bank[name][u] for u in cell], axes[name])
    heads = {name: jnp.stack([beside(name, cell) for cell in cells]) for name in axes}
    core["attention"] = {**core["attention"], **heads}
    varies = tuple(PRIVATE.items())
    return dataclasses.replace(made, weights=Tied(), varies=varies), {**params, "core": core}


MAPS = {"no head shared": {}, "half": {"num_shared": 1}, "a map": {"attention_heads": MAP}}


@pytest.mark.parametrize("options", MAPS.values(), ids=MAPS)
def test_a_step_has_the_heads_that_its_map_names(options):
    made = build(**options)
    plain, theirs = by_hand(made, params := draw(made))
    logits = forward(params, text(), made)[0], forward(theirs, text(), plain)[0]
    assert_close(*logits)
    assert is_equal(*logits) or options == MAPS["a map"]


def test_all_heads_shared_are_tied_attention():
    made = build(KEY_HEADS)
    params = draw(made)
    varies = tuple((PRIVATE | {"attention": "one"}).items())
    tied = dataclasses.replace(made, weights=Tied(), varies=varies)
    theirs = by_hand(made, params)[1]
    first = jax.tree.map(lambda w: w[:1], theirs["core"]["attention"])
    core = theirs["core"] | {"attention": first}
    assert is_equal(
        forward(params, text(), made)[0], forward({**theirs, "core": core}, text(), tied)[0]
    )


def test_parameters_are_those_of_the_bank_and_flops_the_vanilla_models():
    count = accounting.unique_parameters
    none, half, all_ = (build(n) for n in range(KEY_HEADS + 1))
    plain = dataclasses.replace(none, weights=Tied(), varies=tuple(PRIVATE.items()))
    assert count(none) == count(plain)
    attention = parameters.count(model.specs(none)["core"]["attention_heads"])
    assert count(plain) - count(half) == attention // STEPS // KEY_HEADS * (STEPS - 1)
    assert count(plain) - count(all_) == attention // STEPS * (STEPS - 1)
    made = flat(weights=Heads(1))
    assert_exact(made, seq_len=7)
    theirs = dataclasses.replace(made, weights=Tied())
    assert accounting.forward_flops(made, 7) == accounting.forward_flops(theirs, 7)


def test_a_map_is_a_setting():
    typed = {"model.num_layers": "2", "varies.attention_heads": "(((0,1),(1,2)),)"}
    run = config.load("headwise:tiny", typed)
    assert dict(run.model.schedule.entries)["attention_heads"] == (((0, 1), (1, 2)),)


@pytest.mark.parametrize(
    ("fields", "varies", "why"),
    [
        (dict(num_shared=-1), {}, "num_shared: got -1"),
        (dict(num_shared=3), {}, "num_shared: got 3 of 2 key heads; take at most 2"),
        (dict(num_shared=0, slot="mlp"), {}, "no heads in 'mlp'; slots with heads: attention"),
        (dict(num_shared=0), {"attention_heads": (((0, 1, 2),) * 2,) * 3}, "3 entries, .* takes 2"),
        (dict(num_shared=0), {"attention_heads": (((0, 1), (0,)),) * 3}, r"cells have \[1, 2\]"),
        (dict(num_shared=0), {"mlp": (((0, 1),) * 2,) * 3}, "2 entries, a step takes 1"),
    ],
)
def test_what_is_no_map_of_heads_is_refused(fields, varies, why):
    with pytest.raises(ValueError, match=why):
        dataclasses.replace(tiny(), weights=Heads(**fields), varies=tuple(varies.items()))
