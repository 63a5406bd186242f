"""Any legal way of sharing, with any depth policy and any source of keys, is its plain loop."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from recursia.sharing.remat import Remat
from tests.helpers import by_hand, points
from tests.helpers.tiny import (
    BATCH,
    BLOCK,
    LENGTH,
    VOCAB,
    assert_close,
    draw,
    forward,
    gradient,
    text,
    tiny,
)

UNITS = ("none", "block", "recursion")
DRAWS = (Phase.explicit, Phase.generate)  # a failure is shown as it was drawn, not made smaller
AXES = ("block", "one", "recursion", "recursion+block")


@st.composite
def tables(draw, recursions, blocks):
    """Draws a table whose entries are numbered as they come."""
    size = recursions * blocks
    flat = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    names = {entry: i for i, entry in enumerate(dict.fromkeys(flat))}
    rows = [flat[r * blocks : (r + 1) * blocks] for r in range(recursions)]
    return tuple(tuple(names[entry] for entry in row) for row in rows)


@st.composite
def models(draw, depth):
    """Draws a tiny model."""
    recursions, blocks = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    patterns = ["none", "cycle", "middle_cycle"]
    patterns += ["sequence", "middle_sequence"] if depth == "fixed" else []
    hows = st.one_of(st.none(), st.sampled_from(AXES), tables(recursions, blocks))
    varies = tuple((slot, how) for slot in BLOCK.slots if (how := draw(hows)) is not None)
    options = {}
    if depth == "expert_choice":
        falls = draw(st.lists(st.floats(0.1, 1), min_size=recursions, max_size=recursions))
        options["capacity"] = tuple(sorted(falls, reverse=True))
        options["gating"] = draw(st.sampled_from(("weighted", "additive", "delta", "replace")))
    sharing = draw(st.sampled_from(patterns))
    order = "sequence" if sharing.endswith("sequence") else "cycle"
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    table = points.keys(rng, recursions, blocks, order)
    wide = ("spread/3", "middle/1")  # plans of at least 3 steps
    plans = [plan for plan in points.PLANS if plan not in wide or recursions * blocks > 2]
    if depth == "expert_choice":  # recursions have other tokens, or a text's tokens other passes
        among = ("last_recursion", "middle/1", "groups/2 replayed", "first_recursion replayed")
        plans = [plan for plan in plans if plan not in among]
    return tiny(
        depth,
        sharing,
        recursions,
        blocks,
        varies,
        draw(st.sampled_from((*plans, table))),
        draw(st.booleans()),
        **options,
    )


def assert_is_its_loop(config, mode, remat):
    """Asserts shapes, a finite loss, and the logits of the loop by hand."""
    params, tokens = draw(config), text()
    logits, aux = forward(params, tokens, config, mode)
    assert logits.shape == (BATCH, LENGTH, VOCAB)
    assert aux.depth_used.shape == (BATCH, LENGTH)
    assert np.isfinite(gradient(params, tokens, config, mode, remat=Remat(remat))[0])
    assert_close(logits, by_hand.forward(params, tokens, config, mode)[0])


@settings(max_examples=2, derandomize=True, deadline=None, database=None, phases=DRAWS)
@given(models("fixed"), st.sampled_from(UNITS))
def test_any_fixed_depth_model_is_its_loop(config, remat):
    assert_is_its_loop(config, "eval", remat)


@settings(max_examples=2, derandomize=True, deadline=None, database=None, phases=DRAWS)
@given(models("expert_choice"), st.sampled_from(("eval", "causal")), st.sampled_from(UNITS))
def test_any_expert_choice_model_is_its_loop(config, mode, remat):
    assert_is_its_loop(config, mode, remat)


@pytest.mark.exhaustive
@settings(max_examples=30, deadline=None, database=None)
@given(
    st.sampled_from(("fixed", "expert_choice")).flatmap(models),
    st.sampled_from(("eval", "causal")),
    st.sampled_from(UNITS),
)
def test_more_models_are_their_loops(config, mode, remat):
    assert_is_its_loop(config, mode, remat)
