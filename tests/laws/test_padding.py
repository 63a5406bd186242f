"""Padding is no token: beside it, the others have the logits, depths and losses they have alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import model
from recursia.depth import expert_choice
from tests.helpers import exhaustive
from tests.helpers.blocks import PUBLISHED, altered
from tests.helpers.points import DEPTHS, point
from tests.helpers.tiny import LENGTH, VOCAB, draw, error, text

COUNT = 7  # tokens of a row
OTHERS = np.random.default_rng(1).integers(0, VOCAB, (3, LENGTH))  # what stands in the padding


def routed(block="llama", kv="own", **options):
    """Returns a model of expert choice, whose last two capacities differ in short rows alone."""
    capacity = (1.0, 0.5, 0.45)
    found = point(block, "expert_choice", kv_sharing=kv)
    depth = expert_choice.ExpertChoice(3, capacity=capacity, **options)
    return dataclasses.replace(found, depth=depth)


def crowded(depth):
    """Returns a model whose experts have few places."""
    found = point("widenet", depth)
    return dataclasses.replace(found, block=altered(found.block, capacity=0.8))


POINTS = {
    **{f"{name}": point(name) for name in PUBLISHED},
    **{name: point(depth_=name) for name in DEPTHS if name != "fixed"},
    "places of experts": crowded("fixed"),
    "places of experts that some tokens take": crowded("expert_choice"),
    "keys of the first recursion": routed(kv="first_recursion", gating="delta"),
    "replace": routed(gating="replace", score="tanh"),
    "additive": routed("moeut", gating="additive"),
    "warming up": routed(capacity_warmup_steps=9),
}


@jax.jit(static_argnames="config")
def everything(params, tokens, config, segment_ids=None):
    """Returns logits, depths, losses and metrics of training and of decoding."""
    found = {}
    for mode in ("train", "causal"):
        out = model.apply(
            params, tokens, config, segment_ids=segment_ids, mode=mode, step=jnp.int32(4)
        )
        logits = model.logits(params, out.hidden, config)
        found[mode] = logits, out.aux.depth_used, out.aux.losses, out.aux.metrics
    return found


# What a block computes is of a token, except that its experts have places and its steps a time.
REST = (*PUBLISHED, "additive", "places of experts")  # of which others hold more
FEW = [exhaustive(name) if name in REST else name for name in POINTS]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", FEW)
def test_tokens_beside_padding_are_as_alone(name):
    config = POINTS[name]
    params, tokens = draw(config), np.asarray(text(length=COUNT))
    alone = everything(params, jnp.array(tokens), config)
    # The last row is nothing but padding, as in the last batch of a text.
    padded, segments = OTHERS.copy(), np.zeros_like(OTHERS)
    padded[:2, :COUNT], segments[:2, :COUNT] = tokens, 1
    found = everything(params, jnp.array(padded), config, jnp.array(segments))
    for mode, (logits, depth, *reported) in found.items():
        ours = logits[:2, :COUNT], depth[:2, :COUNT], *reported
        assert np.array_equal(ours[1], alone[mode][1])
        assert error(ours, alone[mode]) < 1e-4


@pytest.mark.slow
def test_each_part_of_a_row_keeps_its_share_of_what_is_no_padding():
    config = routed(parts=2)
    segments = np.array([[1] * 6 + [1] + [0] * 5, [0] * 12])
    params, tokens = draw(config), text()
    out = model.apply(params, tokens, config, segment_ids=jnp.array(segments), mode="eval")
    used = np.asarray(out.aux.depth_used)
    kept = [[(used[0, part] > r).sum() for r in range(3)] for part in (slice(0, 6), slice(6, 12))]
    assert kept == [[6, 3, 2], [1, 1, 1]] and not used[1].any() and not used[0, 7:].any()
