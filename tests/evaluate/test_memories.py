"""Statistics of memories, counted by hand and by slow loops; each token's reads."""

import dataclasses

import jax
import numpy as np
import pytest

from recursia import kinds, model
from recursia.evaluate import memories, probes, traces
from recursia.evaluate.memories import Memory
from tests.helpers import points
from tests.helpers.tiny import assert_close

MEMORIES = [
    kind
    for kind in points.FEEDFORWARDS
    if {f.name for f in dataclasses.fields(kinds.config_class("feedforward", kind))} >= {"num_keys"}
]


def memory(index, values, is_there=None):
    """Returns a memory of equal shares."""
    share = np.full(index.shape, 1 / index.shape[-1], np.float32)
    share *= 1 if is_there is None else is_there[..., None, None]
    return Memory(index, share, values)


def random(values=9, steps=3, heads=2):
    draw = np.random.default_rng(0)
    index = draw.random((steps, 2, 20, heads, values)).argsort(-1)[..., :3]
    return memory(index, values, draw.random((steps, 2, 20)) < 0.8)


def test_usage_and_its_divergence_are_those_of_the_summed_shares():
    index = np.array([[0, 1], [0, 2], [0, 1]])[None, None, :, None]  # of 4 values
    made = Memory(index, np.array([0.5, 0.5] * 3, np.float32).reshape(index.shape), 4)
    found = memories.statistics(made)
    assert found["used"] == [3 / 4] and found["unread"] == 1
    p = np.array([1.5, 1, 0.5]) / 3
    assert found["kl_nats"] == pytest.approx([np.log(4) + (p * np.log(p)).sum()])
    assert memories.divergence(np.ones(5)) == pytest.approx(0)
    assert memories.divergence(np.eye(5)[0]) == pytest.approx(np.log(5))
    assert found["overlap"] == [] and found["used_by_chance"][0] <= 1


def test_overlap_is_of_a_tokens_own_reads_whatever_the_head():
    before = np.array([[[0, 1], [2, 3]], [[0, 1], [2, 3]]])
    after = np.array([[[2, 9], [0, 8]], [[7, 6], [5, 4]]])
    assert memories.overlap(before, after, 10) == 2 / 8
    assert memories.overlap(before, before, 10) == 1
    assert memories.overlap(before[:0], after[:0], 10) == 0


def test_consistency_is_that_of_experts_in_windows_that_follow_each_other():
    made, length = random(), 4
    for index, there in zip(made.index, made.is_there, strict=True):
        rows = [row[is_row] for row, is_row in zip(index, there, strict=True)]
        hot = [np.eye(9, dtype=np.uint8)[row].sum(-2, dtype=np.uint8) for row in rows]  # [P N V]
        slow = np.concatenate([probes.windows([row], length)[::length] for row in hot])
        counts, group = memories.window_counts(iter(rows), length, 9)
        assert sorted(counts) == sorted(slow[slow > 0])
        routing = probes.segment_routing(slow, length)
        assert probes.segment_routing(counts, length) == pytest.approx(routing)
        for size in (1, 3, 9):
            hits = probes.segment_cache(slow, size)
            assert memories.cache_hits(counts, group, size) == pytest.approx(hits)


def test_reads_that_follow_the_text_are_above_chance_and_a_token_that_skips_enters_nothing():
    topic = np.random.default_rng(0).integers(0, 50, (4, 16)).repeat(16, 1)
    index = (topic[..., None, None] * 3 + np.arange(3))[None].repeat(2, 0)  # [S B T N K]
    is_there = np.ones(index.shape[:3], bool)
    is_there[1, :, ::2] = False
    found = memories.statistics(memory(index, 200, is_there))
    assert found["overlap"] == [1.0] and found["overlap_by_chance"][0] < 0.2
    row = found["consistency"][1]
    assert row["srp"] > 0.5 > row["srp_by_chance"]
    assert row["sch"]["3"] > 0.5 > row["sch_by_chance"]["3"]
    assert found["unread"] == 200 - 3 * len(np.unique(topic))


@pytest.mark.parametrize("feedforward", MEMORIES)
def test_every_memory_tells_tokens_apart(feedforward):
    config = points.point(
        "pre_norm", "fixed", "grouped_query", feedforward, recursions=2, num_blocks=1
    )
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, config.vocab_size)

    apply = lambda params, apart: (
        model.apply(params, tokens, config, mode="eval", is_by_token=apart).aux.report
    )
    whole = jax.eval_shape(lambda key: apply(model.init(config, key), False), jax.random.key(0))
    apart = jax.jit(lambda key: apply(model.init(config, key), True))(jax.random.key(0))
    reads = jax.device_get(memories.of_report(apart))
    assert memories.of_report(whole) == traces.of_report(apart) == {}
    (found,) = memories.joined([reads, reads], config.schedule.steps).values()
    feed = config.block.feedforward
    heads = feed.retrieval_heads, feed.top_k
    assert found.index.shape == (config.schedule.num_steps, 4, 8, *heads)
    assert found.is_there.all() and found.is_by_step
    assert_close(found.share.sum(-1), np.ones(found.index.shape[:-1]))
    assert found.num_values == feed.num_keys**2 > found.index.max() >= found.index.min() >= 0
    twice = dataclasses.replace(found, share=2 * found.share)
    assert not twice.is_by_step
