"""Any legal way of sharing, with any depth policy and any source of keys, is its plain loop."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import by_hand
from tests.helpers.tiny import (
    BATCH,
    BLOCK,
    LENGTH,
    VOCAB,
    assert_close,
    draw,
    forward,
    loss,
    text,
    tiny,
)

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
    return tiny(
        depth,
        draw(st.sampled_from(patterns)),
        recursions,
        blocks,
        varies,
        draw(st.sampled_from(("own", "first_recursion"))),
        draw(st.booleans()),
        remat=draw(st.sampled_from(("none", "block", "recursion"))),
        **options,
    )


def assert_is_its_loop(config, mode):
    """Asserts shapes, a finite loss, and the logits of the loop by hand."""
    params, tokens = draw(config), text()
    logits, aux = forward(params, tokens, config, mode)
    assert logits.shape == (BATCH, LENGTH, VOCAB)
    assert aux.depth_used.shape == (BATCH, LENGTH)
    assert np.isfinite(loss(params, tokens, config, mode))
    assert_close(logits, by_hand.forward(params, tokens, config, mode)[0])


@settings(max_examples=10, derandomize=True, deadline=None, database=None)
@given(models("fixed"))
def test_any_fixed_depth_model_is_its_loop(config):
    assert_is_its_loop(config, "eval")


@settings(max_examples=6, derandomize=True, deadline=None, database=None)
@given(models("expert_choice"), st.sampled_from(("eval", "causal")))
def test_any_expert_choice_model_is_its_loop(config, mode):
    assert_is_its_loop(config, mode)
