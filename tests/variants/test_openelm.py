"""Widths by step: layers of their own size where nothing is shared, nested slices where it is."""

import dataclasses

import jax
import numpy as np
import pytest

from recursia import accounting, cache, config, model
from recursia import params as parameters
from recursia.convert import recursive, unroll
from recursia.errors import ConfigError
from recursia.generate import slots
from recursia.laws.statements import LAWS
from recursia.params import at
from recursia.sharing import scans
from recursia.sharing.remat import Remat
from recursia.sharing.slices import Slices
from recursia.sharing.tied import Tied
from tests.helpers import by_hand, points, slow
from tests.helpers.flops import assert_exact
from tests.helpers.tiny import LENGTH, assert_close, draw, forward, text

PUBLISHED = {  # parameters, heads and hidden units of the first and of the last layer
    "270m": (271_527_168, (12, 20), (768, 5120)),
    "450m": (457_179_136, (12, 24), (768, 6144)),
    "1.1b": (1_079_891_456, (16, 32), (1024, 8192)),
    "3b": (3_036_647_424, (12, 24), (1536, 12288)),
}
HALF = Slices(heads=(0.5,), hidden=(0.5,))


def build(weights=None, **options):
    """Returns a model of two steps of one block, of 2 and 4 heads, and 3 and 24 hidden units."""
    made = points.point(weights="slices", recursions=2, num_blocks=1, **options)
    return made if weights is None else dataclasses.replace(made, weights=weights)


SHARED, OWN = build(), build(sharing="none")


def sliced(core, heads, hidden):
    """Returns the first heads and hidden units of a block's weights."""
    first = {"query": np.s_[:, :heads], "out": np.s_[:heads], "down": np.s_[:hidden]}
    first |= dict.fromkeys(("key", "value"), np.s_[:, : heads // 2])
    first |= dict.fromkeys(("gate", "up"), np.s_[:, :hidden])
    return {s: {n: np.asarray(w)[first.get(n, ...)] if s != "norms" else np.asarray(w)
                for n, w in tree.items()} for s, tree in core.items()}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_published_parameters(name):
    made = config.load(f"openelm:{name}", {}).model
    count, heads, hidden = PUBLISHED[name]
    assert accounting.unique_parameters(made) == accounting.applied_parameters(made) == count
    ends = made.step_blocks[0], made.step_blocks[-1]
    assert tuple(block.mixer.num_heads for block in ends) == heads
    assert tuple(block.feedforward.mlp_dim for block in ends) == hidden
    groups = {block.mixer.num_heads / block.mixer.num_kv_heads for block in made.step_blocks}
    assert groups == {4}


@pytest.mark.parametrize("made", [SHARED, OWN], ids=["shared", "own"])
def test_a_step_is_a_block_of_its_own_width(made):
    """In NumPy: with slices of the one block, or with blocks stored at their width."""
    weights = draw(made)
    x = np.asarray(weights["embed"]["table"], np.float64)[np.asarray(text())[0]]
    where = np.stack([np.arange(LENGTH), np.ones(LENGTH)])
    for step, (heads, hidden) in enumerate([(2, 3), (4, 24)]):
        core = at(weights["core"], 0 if made is SHARED else step)
        own = sliced(core, heads, hidden)
        if made is OWN:
            assert jax.tree.map(np.shape, own) == jax.tree.map(np.shape, core)
        x, _ = by_hand.block(own, x, where, made.step_blocks[step])
    x = by_hand.norm(x, weights["final_norm"], made.block.norm_eps)
    logits = x @ np.asarray(weights["embed"]["table"]).T
    assert_close(forward(weights, text(), made)[0][0], logits)


@pytest.mark.parametrize("sharing", [slow("none"), "cycle"])
def test_steps_of_one_width_are_the_uniform_model_bit_for_bit(sharing):
    made = build(HALF, sharing=sharing)
    block = made.block.narrowed(0.5, 0.5, 1)
    plain = dataclasses.replace(made, block=block, weights=Tied())
    assert made.schedule == plain.schedule
    ours, theirs = (model.init(each, jax.random.key(0)) for each in (made, plain))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
    run = lambda each: forward(ours, text(), each)[0]
    assert np.array_equal(run(made), run(plain))


@pytest.mark.slow
def test_the_gradient_of_a_shared_block_is_the_sum_over_its_slices():
    assert LAWS["sharing"](SHARED, draw(SHARED)) == ""


@pytest.mark.parametrize("made", [SHARED, OWN], ids=["shared", "own"])
def test_a_step_costs_its_slice(made):
    assert_exact(made, remat=Remat("block"))
    small, large = (accounting.unique_parameters(each) for each in (SHARED, OWN))
    attention, mlp, norms = 2 * 16 * 2 * 4 + 2 * 16 * 4, 3 * 16 * 3, 2 * 16  # of the narrow step
    assert large - small == attention + mlp + norms
    assert accounting.applied_parameters(SHARED) == large
    keys = 2 * 4 * (1 + 2)  # of both steps, and as many values
    assert accounting.cache_bytes_per_token(made, LENGTH, 4) == 4 * keys
    assert cache.empty(made, 1, LENGTH).num_bytes == 4 * keys * LENGTH


def test_a_shallower_model_has_the_first_slices():
    made = points.point(weights="slices", recursions=3, num_blocks=1)
    weights = draw(made)
    short, cut = model.at_depth(made, weights, 2)
    assert short.step_blocks == made.step_blocks[:2]
    declared = jax.tree.map(lambda spec: spec.shape, model.specs(short))
    assert jax.tree.map(np.shape, cut) == declared
    states = forward(weights, text(), made)[1].states
    assert_close(forward(cut, text(), short)[1].states, states[:2])
    assert made.at_depth(5).step_blocks[2:] == made.step_blocks[2:] * 3


def test_runs_of_one_width_are_one_scan():
    halves = Slices(heads=(0.5, 0.5, 1.0, 1.0), hidden=(1.0,))
    made = points.point(weights="slices", recursions=4, num_blocks=1)
    plan = dataclasses.replace(made, weights=halves).schedule
    assert [(scan.start, scan.num_periods) for scan in scans.divide(plan, 0, 4)] == [(0, 2), (2, 2)]


def test_hidden_units_are_multiples():
    made = build(Slices(heads=(1.0,), hidden=(0.4, 1.0), multiple=9))
    assert [block.feedforward.mlp_dim for block in made.step_blocks] == [9, 24]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kv_sharing": "first_recursion"}, "kv.kv_sharing: steps have different numbers of heads"),
        ({"depth_": "recurrent"}, "the width of steps varies along them"),
        ({"block_": "pre_norm", "mixer": "switch_head"}, "weights.heads: this mixer"),
        ({"block_": "pre_norm", "feedforward": "glu_moe"}, "weights.hidden: this feed-forward"),
    ],
)
def test_what_has_no_slices_is_refused(options, why):
    with pytest.raises(ValueError, match=why) as refusal:
        build(**options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("heads", [(), (0.0, 1.0), (0.5, 1.5)])
def test_widths_that_cannot_be_are_refused(heads):
    with pytest.raises(ValueError, match=r"heads: got .* takes fractions above 0 and at most 1"):
        Slices(heads=heads)


def test_what_needs_one_shape_refuses_widths_with_the_reason():
    with pytest.raises(ValueError, match="weights: steps have different widths"):
        SHARED.in_phase(1, None)
    with pytest.raises(ConfigError, match=r"config.weights: .* no unrolled form"):
        unroll.unrolled(SHARED)
    plain = dataclasses.replace(SHARED, weights=Tied(), sharing="none")
    weights = parameters.abstract(model.specs(plain))
    with pytest.raises(ValueError, match="weights: steps have different widths"):
        recursive.recursive(weights, plain, SHARED, "stepwise", key=jax.random.key(0))
    assert slots.refusal(SHARED).startswith("weights: recursions have different widths")
