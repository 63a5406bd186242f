"""Statistics of routing, counted by hand; each token's choices, which sum to those of a batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import kinds, model
from recursia.evaluate import probes, traces
from recursia.layers import balance
from recursia.layers.attention import Places
from recursia.layers.balance import Usage
from tests.helpers import points
from tests.helpers.tiny import assert_close, normal

ROUTERS = [
    kind
    for kind in points.FEEDFORWARDS
    if {f.name for f in dataclasses.fields(kinds.config_class("feedforward", kind))}
    >= {"num_experts"}
]


def hot(*chosen, experts=3):
    """Returns what tokens took, of one head: a tuple of experts for each token."""
    taken = np.zeros((len(chosen), 1, experts), np.uint8)
    for token, some in enumerate(chosen):
        taken[token, 0, list(some)] = 1
    return taken


def trace(taken, margin=None):
    """Returns the trace of steps [S B T N E]."""
    margin = np.zeros(taken.shape[:-1], np.float32) if margin is None else margin
    return traces.Trace(taken, margin, np.arange(len(taken)))


def test_affinity_is_the_share_of_pairs():
    joint = probes.affinity(hot([0], [0], [1], [1]), hot([2], [2], [0], [1]))
    assert_close(joint[0], np.array([[0, 0, 2], [1, 1, 0], [0, 0, 0]]) / 4)
    p, by_pair = [1 / 4, 1 / 4, 1 / 2], [(0.5, 0.5 * 0.5), (0.25, 0.5 * 0.25), (0.25, 0.5 * 0.25)]
    assert sum(p) == 1
    assert probes.information(joint) == pytest.approx(sum(j * np.log(j / q) for j, q in by_pair))
    assert probes.top_share(joint) == pytest.approx(3 / 4)
    two = probes.affinity(hot([0, 1]), hot([1, 2]))  # a token with two experts has four pairs
    assert_close(two[0], np.array([[0, 1, 1], [0, 1, 1], [0, 0, 0]]) / 4)
    assert probes.information(two) == pytest.approx(0)


def test_segment_routing_is_the_best_f1_of_all_sets_of_experts():
    row = hot([0], [0], [1], [0])
    counts = probes.windows([row], 2)  # of the tokens 0 1, 1 2, 2 3
    assert counts[:, 0].tolist() == [[2, 0, 0], [1, 1, 0], [1, 1, 0]]
    # From 2 on: 2 right of 2 given; from 1 on: 6 right of 10 given; of 6 that tokens chose.
    assert probes.segment_routing(counts, 2) == pytest.approx(
        max(2 * 2 / (2 + 6), 2 * 6 / (10 + 6))
    )
    assert probes.segment_cache(counts, 1) == pytest.approx((2 + 1 + 1) / 6)
    assert probes.segment_cache(counts, 2) == 1
    same = probes.windows([hot(*[[0, 2]] * 5)], 4)
    assert probes.segment_routing(same, 4) == 1
    assert probes.segment_cache(same, 1) == 0.5
    assert len(probes.windows([row, row[:1]], 4)) == 1  # no window spans two rows


def test_separation_is_the_share_of_pairs_in_order():
    yes, no = np.array([3.0, 1.0]), np.array([2.0, 1.0])
    assert probes.separation(yes, no) == (2 + 0.5) / 4


def test_choices_that_follow_the_text_are_above_chance_and_by_chance_below():
    draw = np.random.default_rng(0)
    topic = draw.integers(0, 8, (4, 16)).repeat(16, 1)  # one expert for each 16 tokens
    first = np.eye(8, dtype=np.uint8)[topic]
    taken = np.stack([first, np.roll(first, 1, -1)])[:, :, :, None]  # [S B T N E]
    found = probes.of_router(trace(taken))
    assert found["affinity_nats"][0] > 1.8 > 0.1 > found["affinity_nats_by_chance"][0]
    assert found["affinity_top_share"] == [1.0]
    for row in found["consistency"][:2]:
        assert row["srp"] > 0.7 > row["srp_by_chance"]
        assert row["sch"]["1"] > 0.7 > row["sch_by_chance"]["1"]
    assert [row["segment"] for row in found["consistency"]] == [4, 16, 64, 256]


def test_a_token_that_skips_a_step_enters_no_pair_and_no_segment():
    taken = np.stack([hot([0], [1], [0], [2]), hot([1], [], [1], [])])[:, None]
    routed = trace(taken)
    assert routed.is_there[1, 0].tolist() == [True, False, True, False]
    assert_close(probes._pair(routed, 0)[0, 0], [0, 1, 0])
    assert [len(rows[0]) for rows in probes._rows(routed)] == [4, 2]
    assert routed.index()[0, :, :, 0, 0].tolist() == [[0, 1], [1, -1], [0, 1], [2, -1]]


def test_the_margin_is_the_distance_between_logits():
    logits, index = jnp.array([[[0.5, 2.0, -1.0, 1.0]]]), jnp.array([[[1, 3]]])
    places = Places(jnp.zeros((1, 1), int), 2)
    used = jax.tree.map(lambda x: x[None, None], balance.usage(logits, index, places=places))
    (found,) = traces.of_report({"router": used}).values()
    assert found["taken"][0, 0, :, 0].tolist() == [[0, 1, 0, 1], [0] * 4]
    assert_close(found["margin"][0, 0, 0, 0], 0.5)
    assert np.isnan(found["margin"][0, 0, 1, 0])


@pytest.mark.parametrize("heads", [(), (2,)])
def test_statistics_of_tokens_add_up_to_those_of_a_row_wherever_tokens_stand(heads):
    logits = normal(2, 3, *heads, 4)
    index = jax.lax.top_k(logits, 2)[1]
    is_counted = jnp.array([[True, True, False], [True, True, True]])
    places = Places(jnp.array([[4, 1, 0], [0, 2, 3]]), 5)
    apart = jax.jit(balance.usage)(logits, index, is_counted, places)
    assert apart.tokens.shape[:2] == (2, 5)
    summed = jax.tree.map(lambda leaf: leaf.sum(1), apart)
    assert_close(summed, balance.usage(logits, index, is_counted))
    assert apart.tokens.reshape(2, 5, -1)[0, :, 0].tolist() == [0, 1, 0, 0, 1]


def small(depth, mixer, feedforward):
    config = points.point("pre_norm", depth, mixer, feedforward, recursions=2, num_blocks=1)
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, config.vocab_size)
    return config, lambda params, **how: model.apply(params, tokens, config, mode="eval", **how)


def uses(out):
    return jax.tree.leaves(out.aux.report, is_leaf=lambda x: isinstance(x, Usage))


@pytest.mark.parametrize("feedforward", ROUTERS)
def test_every_router_tells_tokens_apart(feedforward):
    config, run = small("fixed", "grouped_query", feedforward)
    params = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    whole = jax.eval_shape(run, params)
    apart = jax.eval_shape(lambda params: run(params, is_by_token=True), params)
    assert uses(whole)
    for one, other in zip(uses(whole), uses(apart), strict=True):
        for leaf, by_token in zip(*map(jax.tree.leaves, (one, other)), strict=True):
            assert by_token.shape == (*leaf.shape[:3], 8, *leaf.shape[3:])


@pytest.mark.slow
def test_each_tokens_choices_sum_to_what_the_model_reports():
    config, run = small("expert_choice", "switch_head", "sigma_moe")
    both = lambda params: (run(params), run(params, is_by_token=True))
    whole, apart = jax.jit(both)(model.init(config, jax.random.key(0)))
    assert (whole.hidden == apart.hidden).all()
    for one, other in zip(uses(whole), uses(apart), strict=True):
        assert one.taken.sum() > 0
        assert other.taken.shape[3] == 8
        assert_close(jax.tree.map(lambda leaf: leaf.sum(3), other), one)
    found = traces.joined(
        [jax.device_get(traces.of_report(apart.aux.report))], config.schedule.steps
    )
    for each in found.values():
        assert each.is_by_step and each.taken.shape[:3] == (config.schedule.num_steps, 2, 8)
