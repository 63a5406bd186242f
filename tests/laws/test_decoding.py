"""Decoding with a KV cache gives what the full forward pass in causal mode gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, cache, model
from recursia.generate.decoder import Decoder
from recursia.generate.sampling import Sampling
from recursia.sharing.pending import AT_ONCE
from tests.helpers import points
from tests.helpers.blocks import PUBLISHED
from tests.helpers.tiny import BATCH, LENGTH, assert_close, draw, forward, text

PROMPT = 5
AXES = {
    "depth_": points.DEPTHS,
    "sharing": points.PATTERNS,
    "kv_sharing": points.PLANS,
    "weights": points.WEIGHTS,
    "mixer": points.MIXERS,
    "feedforward": points.FEEDFORWARDS,
    "inject_": tuple(points.INJECTS),
    "block_": tuple(PUBLISHED),
}
EARLY = {  # depth policies under which the tokens of a text stop at different depths
    "act": {"epsilon": 0.2, "halt_bias_init": -0.5},
    "act copied": {"epsilon": 0.2, "halt_bias_init": -0.5, "halted_state": "copied"},
    "exit_gate": {"exit_threshold": 0.55},
    "stick_breaking": {"threshold": 0.3},
    "recurrent": {"exit": "latent_diff", "exit_threshold": 1.0},
    "token_choice": {},
    "expert_choice": {},
}


@functools.lru_cache
def extended(config):
    def run(params, tokens, held, positions, segments):
        how = {"positions": positions, "segment_ids": segments}
        hidden, held = model.extend(params, tokens, config, held, **how)
        return model.logits(params, hidden, config), held

    return jax.jit(run)


def step_by_step(config, params, tokens, chunks, positions=None, segments=None):
    """Returns logits and the cache of rows that are read in chunks of so many tokens."""
    params = cache.unstack(params, config)
    held = cache.empty(config, len(tokens), tokens.shape[1])
    room = {(n, o): tokens.shape[1] for n, pasts in held.pasts.items() for o in pasts}
    held, logits, first = cache.resized(held, room), [], 0
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = jnp.ones(tokens.shape, jnp.int32) if segments is None else segments
    for count in chunks:
        here = np.s_[:, first : first + count]
        given = (tokens[here], held, positions[here], segments[here])
        each, held = extended(config)(params, *given)
        logits.append(each)
        first += count
    return jnp.concatenate(logits, axis=1), held


ONE_BY_ONE = (PROMPT, *[1] * (LENGTH - PROMPT))


@pytest.mark.parametrize(
    ("axis", "kind"), [(axis, kind) for axis, kinds in AXES.items() for kind in kinds]
)
def test_steps_are_the_forward_pass(axis, kind):
    config = points.point(**{axis: kind})
    params = draw(config)
    logits, held = step_by_step(config, params, text(), ONE_BY_ONE)
    assert_close(logits, forward(params, text(), config, "causal")[0])
    owners = len(set(config.schedule.owners.tolist())) + sum(config.ends.values())
    size = 4 * config.block.cache_entries() * owners * LENGTH * BATCH
    assert held.num_bytes == size


def early(name):
    """Returns a model whose tokens stop at different depths, its weights and those depths."""
    kind = name.split()[0]
    config = points.point(depth_=kind, recursions=5 if kind == "recurrent" else 3)
    depth = dataclasses.replace(config.depth, **EARLY[name])
    config = dataclasses.replace(config, depth=depth)
    params = draw(config)
    depth = np.asarray(forward(params, text(), config, "causal")[1].depth_used)
    assert any(np.diff(row).max() > 0 for row in depth), "no token goes deeper than one before it"
    return config, params, depth


def recursions_run(depth, shows_stopped):
    """Returns how many recursions a text takes, those of tokens that catch up included."""
    done, total = [], 0
    for tokens in (depth[:PROMPT], *depth[PROMPT:, None]):
        deepest = int(tokens.max())
        for number in range(deepest):
            waits = [i for i, taken in enumerate(done) if taken == number] if shows_stopped else []
            total += -(-len(waits) // AT_ONCE)
            for i in waits:
                done[i] += 1
        total += deepest
        done += [deepest] * len(tokens)
    return total


@pytest.mark.parametrize("name", EARLY)
def test_early_exits_save_blocks_and_change_nothing(name):
    config, params, depth = early(name)
    alone = [step_by_step(config, params, text()[row][None], ONE_BY_ONE) for row in range(BATCH)]
    logits = jnp.concatenate([each for each, _ in alone])
    assert_close(logits, forward(params, text(), config, "causal")[0])
    for (_, held), deep in zip(alone, depth, strict=True):
        count = recursions_run(deep, config.depth.shows_stopped)
        assert held.num_blocks == config.schedule.num_blocks * count


@pytest.mark.parametrize("depth", points.DEPTHS)
def test_padding_on_either_side_changes_nothing(depth):
    config = points.point(depth_=depth)
    params, tokens = draw(config), text()
    lengths = np.array([3, 7])
    logits = forward(params, tokens, config, "causal")[0]
    for is_left in (False, True):
        shifts = 8 - lengths if is_left else 0 * lengths
        rows = [np.roll(row[:8], shift) for row, shift in zip(tokens, shifts, strict=True)]
        places = np.arange(8) - shifts[:, None]
        segments = ((places >= 0) & (places < lengths[:, None])).astype(np.int32)
        more = np.stack([row[n : n + 3] for row, n in zip(tokens, lengths, strict=True)])
        given = jnp.concatenate([jnp.stack(rows), more], axis=1)
        after = lengths[:, None] + np.arange(3)
        where = jnp.concatenate([np.maximum(places, 0), after], axis=1)
        segments = jnp.concatenate([segments, np.ones((2, 3), np.int32)], axis=1)
        got = step_by_step(config, params, given, (8, 1, 1, 1), where, segments)[0][:, 8:]
        want = jnp.stack([row[n : n + 3] for row, n in zip(logits, lengths, strict=True)])
        assert_close(got, want)


def test_a_routed_step_has_places_for_the_tokens_that_it_keeps():
    config = points.point(depth_="expert_choice", recursions=3)
    size = 96
    held = cache.empty(config, 1, size)
    places = [held.pasts["core"][owner].size for owner in sorted(held.pasts["core"])]
    assert places == [96, 96, 64, 64, 32, 32]
    assert held.num_bytes == accounting.cache_bytes_per_token(config, size) * size


@pytest.mark.parametrize("capacity", [(1.0, 0.9, 0.9), (1.0, 0.1, 0.1)])
def test_a_cache_that_is_full_grows(capacity):
    config = points.point(depth_="expert_choice", recursions=3)
    depth = dataclasses.replace(config.depth, capacity=capacity)
    config = dataclasses.replace(config, depth=depth)
    params, prompt = draw(config), text()[0].tolist()
    decoder = Decoder(params, config, Sampling(0.0))
    texts = decoder.start([prompt], jax.random.split(jax.random.key(0), 1), 4 * LENGTH)
    written = [*prompt, int(texts.token[0])]
    for _ in range(2 * LENGTH):
        texts = decoder.step(texts)
        written.append(int(texts.token[0]))
    logits = forward(params, jnp.array([written]), config, "causal")[0][0]
    assert written[LENGTH:] == logits[LENGTH - 1 : -1].argmax(-1).tolist()
