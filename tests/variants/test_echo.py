"""Queries and keys of an earlier step, replayed: attention probabilities are shared by steps."""

import dataclasses

import jax
import numpy as np
import pytest

from recursia import accounting, kv
from recursia.convert import export
from recursia.errors import ConfigError
from recursia.generate import slots
from recursia.sharing.remat import Remat
from tests.helpers import by_hand, points
from tests.helpers.flops import assert_exact
from tests.helpers.tiny import assert_close, draw, forward, gradient, text

INNER = ((0, 1, 1, 1), (1, 1, 6, 7))  # the inner four of eight steps replay the second


def build(plan="below/2", reads="queries_keys", **options):
    """Returns a model of eight steps that share nothing else."""
    config = points.point(**{"sharing": "none", "recursions": 2, "num_blocks": 4, **options})
    return dataclasses.replace(config, kv=kv.Plan(plan, reads=reads))


def test_the_inner_steps_replay_the_last_one_below_them():
    assert build().schedule.keys == INNER
    assert build("below/1").schedule.keys == ((0, 0, 0, 0), (0, 0, 0, 7))
    assert build(reads="keys_values").schedule.keys == INNER


def test_replaying_queries_and_keys_is_reusing_the_probabilities():
    config = build()
    weights = draw(config)
    reused = by_hand.forward(weights, text(), config)[0]  # stores and reads probabilities
    assert_close(forward(weights, text(), config)[0], reused)


@pytest.mark.parametrize("plan", ["own", "groups/1", ((0, 1, 2, 3), (4, 5, 6, 7))])
def test_steps_that_each_read_their_own_are_vanilla_to_the_bit(plan):
    config, vanilla = build(plan), build("own", "keys_values")
    weights = draw(vanilla)
    (loss, grads), (same, theirs) = (gradient(weights, text(), each) for each in (config, vanilla))
    assert loss == same
    assert jax.tree.all(jax.tree.map(np.array_equal, grads, theirs))


def test_a_replaying_step_owns_values_and_output_alone():
    config, vanilla = build(), build("own", "keys_values")
    mixer, wide, length = config.block.mixer, config.block.embed_dim, 12
    made = wide * (mixer.query_width + mixer.key_width)
    for count in (accounting.unique_parameters, accounting.applied_parameters):
        assert count(vanilla) - count(config) == 4 * made
    flops = [accounting.forward_flops(each, length) for each in (vanilla, config)]
    assert flops[0] - flops[1] == 4 * length * 2 * made
    cache = [accounting.cache_bytes_per_token(each, length, 1) for each in (vanilla, config)]
    assert cache[0] - cache[1] == 4 * mixer.key_width


@pytest.mark.parametrize("remat", ["none", "block", "recursion"])
def test_flops_are_exact(remat):
    assert_exact(build("groups/4", sharing="cycle", num_blocks=2), remat=Remat(remat))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: build("last_recursion"), "which comes later: the token's query is not made yet"),
        (lambda: build("top/1"), "kv.kv_sharing: step 1 replays the queries and keys of step 6"),
        (lambda: build(block_="pre_norm", mixer="momha"), "experts are chosen for each token"),
        (lambda: build("below/4"), "4 steps at each end make their own keys, and of 8 none is"),
        (
            lambda: points.point(depth_="token_choice", kv_sharing="first_recursion replayed"),
            "kv.kv_sharing: recursion 1 replays queries and keys of an earlier one",
        ),
        (
            lambda: points.point(depth_="exit_gate", kv_sharing="first_recursion replayed"),
            "under depth exit_gate its tokens may be others; take depth.kind 'fixed'",
        ),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_the_reason(make, why):
    with pytest.raises(ValueError, match=why) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_a_server_by_recursions_and_the_modelling_file_replay_nothing():
    config = build("first_recursion", sharing="cycle")
    assert "kv.reads 'queries_keys'" in slots.refusal(config)
    with pytest.raises(ConfigError, match="the modelling file replays no queries"):
        export._check_own(config)
