"""Whose keys a step reads decides what is stored: cache, and weights that make keys."""

import dataclasses

import jax
import numpy as np
import pytest

from recursia import accounting, kv, model, params
from recursia.convert import recursive
from tests.helpers.points import PLANS
from tests.helpers.tiny import BLOCK, LENGTH, assert_close, draw, gradient, text, tiny

STEPS = 6
MAKERS = {"own": 6, "first_recursion": 2, "groups/2": 3, "groups/3": 2, "spread/3": 3}
MAKERS |= {"upper_half": 4, "last_recursion": 2, "middle/1": 3}
MAKERS |= {"groups/2 replayed": 3, "first_recursion replayed": 2}


def private(plan):
    """Returns a model whose steps share keys alone."""
    return tiny(sharing_="none", recursions=3, blocks=2, kv=plan)


@pytest.mark.few(2)
@pytest.mark.parametrize("plan", PLANS)
def test_cache_and_weights_of_keys_follow_the_plan(plan):
    config, own, makers = private(plan), private("own"), MAKERS[plan]
    wide = BLOCK.mixer.key_width
    read, other = (wide, "value") if plan.endswith("replayed") else (2 * wide, "query")
    kept = 4 * (makers * read + STEPS * (BLOCK.cache_entries() - read))
    assert accounting.cache_bytes_per_token(config, LENGTH, 4) == kept
    made = wide + (wide if other == "query" else BLOCK.mixer.query_width)
    missing = (STEPS - makers) * made * BLOCK.embed_dim
    for count in (accounting.unique_parameters, accounting.applied_parameters):
        assert count(config) == count(own) - missing
    attention = model.specs(config)["core"]["attention"]
    shared = {"query", "key", "value"} - {other}
    assert {attention[name].shape[0] for name in shared} == {makers}
    assert attention[other].shape[0] == STEPS
    grads = gradient(draw(config), text(), config)[1]["core"]["attention"]
    assert all(np.abs(leaf).max(axis=(1, 2, 3)).min() > 0 for leaf in grads.values())


def test_a_shallower_model_takes_the_keys_weights_of_its_steps():
    """Recursion 0 has entries 2 and 3, which steps of it make keys with."""
    config = dataclasses.replace(
        private("own"),
        varies=(("attention", ((2, 3), (0, 1), (4, 5))),),
        kv=kv.Plan(((0, 0), (0, 3), (4, 4))),
    )
    weights = draw(config)
    short, cut = model.at_depth(config, weights, 2)
    shapes = params.abstract(model.specs(short))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, shapes, cut))
    entry = short.schedule.entry("attention.keys")
    held = config.schedule.held("attention.keys").tolist()
    theirs = weights["core"]["attention"]["key"][held.index(2)]
    assert np.array_equal(cut["core"]["attention"]["key"][entry[0]], theirs)


def test_merged_keys_start_as_the_mean_of_those_they_stand_for():
    own, shared = private("own"), private("groups/3")
    weights = draw(own)
    made = recursive.recursive(weights, own, shared, "average", key=jax.random.key(0))
    theirs = weights["core"]["attention"]["key"]
    assert_close(made["core"]["attention"]["key"], theirs.reshape(2, 3, *theirs.shape[1:]).mean(1))
    assert_close(made["core"]["attention"]["query"], weights["core"]["attention"]["query"])


@pytest.mark.parametrize(("plan", "whole"), [("own", 0), ("groups/2", 0), ("upper_half", 1)])
def test_keys_seen_through_a_window_alone_are_kept_while_they_are_in_it(plan, whole):
    """Of the middle layer, which all above read, every token's are kept."""
    window = 4
    config = dataclasses.replace(private(plan), kv=kv.Plan(plan, window))
    kept = (MAKERS[plan] - whole) * window + whole * LENGTH
    cache = accounting.cache_bytes_per_token(config, LENGTH, 4)
    assert cache * LENGTH == kept * 4 * BLOCK.cache_entries()


def test_a_token_sees_no_key_beyond_its_window():
    """By perturbation: one layer's result at a token is free of tokens before the window."""
    window, late = 3, 8
    config = dataclasses.replace(tiny(recursions=1, blocks=1), kv=kv.Plan("own", window))
    params, tokens = draw(config), text()
    run = lambda tokens: model.apply(params, tokens, config, mode="eval").hidden[:, late]
    changed = lambda place: tokens.at[:, place].set((tokens[:, place] + 1) % 7)
    same = [bool((run(changed(late - back)) == run(tokens)).all()) for back in range(6)]
    assert same == [False] * window + [True] * (6 - window)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"window": ((1, -2),) * 3}, "window: got -2"),
        ({"window": ((1,),)}, r"kv.window: the table has rows of \[1\]"),
        ({"kv_sharing": ((0, 9),) * 3}, "kv.kv_sharing: step 1 reads the keys of step 9"),
        ({"kv_sharing": "spread/99"}, "kv.kv_sharing: 99 steps make keys, and there are 6"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_its_field(fields, why):
    with pytest.raises(ValueError, match=why):
        dataclasses.replace(private("own"), kv=kv.Plan(**fields))
