"""Decoding with a KV cache gives what the full forward pass in causal mode gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, cache, config, kv, model
from recursia.generate import decode
from recursia.generate.decoder import Decoder
from recursia.generate.sampling import Sampling
from recursia.sharing.pending import AT_ONCE
from tests.helpers import exhaustive, points, slow
from tests.helpers.presets import SYSTEMS
from tests.helpers.tiny import BATCH, LENGTH, VOCAB, assert_close, draw, error, forward, text, tol

PROMPT = 5
LOOP_NORMS = ("none", "each", "last")
AXES = {
    "depth_": points.DEPTHS,
    "sharing": points.PATTERNS,
    "kv_sharing": points.PLANS,
    "weights": points.WEIGHTS,
    "mixer": points.MIXERS,
    "feedforward": points.FEEDFORWARDS,
}
MORE = {"block_": points.BLOCKS, "inject_": tuple(points.INJECTS), "loop_norm": LOOP_NORMS}
MORE |= {"parameterisation": points.PARAMETERISATIONS, "embed_": points.EMBEDS}
MORE |= {"copies": tuple(points.COPIES), "ends": ("alike", *points.outer())}
AT_TWO = 2  # recursions; fewer compile sooner
# Depth policies meet plans of keys in tests/laws/test_depth.py.
QUICK = points.together({**AXES, **MORE}, recursions=AT_TWO)
PARTS = 12  # of the points that are too many for one test


@functools.cache
def pairs():
    """Returns arguments of points among which is every pair of values."""
    return points.covering({**AXES, **MORE, "recursions": (AT_TWO,)})


EARLY = {  # depth policies under which the tokens of a text stop at different depths
    "act": {"epsilon": 0.2, "halt_bias_init": -0.5},
    "act copied": {"epsilon": 0.2, "halt_bias_init": -0.5, "halted_state": "copied"},
    "exit_gate": {"exit_threshold": 0.55},
    "stick_breaking": {"threshold": 0.3},
    "recurrent": {"exit": "latent_diff", "exit_threshold": 1.0},
    "token_choice": {},
    "expert_choice": {},
}
FIRST = ("act copied", "recurrent", "expert_choice")  # each with a cache of another kind


@functools.lru_cache
def extended(config):
    def run(params, tokens, held, positions, segments):
        how = {"positions": positions, "segment_ids": segments}
        hidden, held = model.extend(params, tokens, config, held, **how)
        return model.logits(params, hidden, config), held

    return jax.jit(run)


def step_by_step(config, params, tokens, chunks, positions=None, segments=None, places=None):
    """Returns logits and the cache of rows that are read in chunks of so many tokens."""
    params = cache.unstack(params, config)
    places = places or tokens.shape[1]
    held = cache.empty(config, len(tokens), places)
    room = {(n, o): places for n, pasts in held.pasts.items() for o in pasts}
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


AFTER_PROMPT = (PROMPT, *[1] * (LENGTH - PROMPT))
ONE_BY_ONE = (1,) * LENGTH  # one program the less to compile


def named(chosen):
    return "-".join(map(str, chosen.values()))


@pytest.mark.few(2)
@pytest.mark.parametrize("chosen", QUICK, ids=named)
def test_steps_are_the_forward_pass(chosen):
    """A third after a prompt, which is one program more to compile, the others one by one."""
    config = points.point(**chosen)
    assert_decodes(config, draw(config), ONE_BY_ONE if QUICK.index(chosen) % 3 else AFTER_PROMPT)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_every_pair_of_axes_decodes(part):
    for chosen in pairs()[part::PARTS]:
        config = points.point(**chosen)
        assert_decodes(config, draw(config), ONE_BY_ONE)
        jax.clear_caches()  # else the compiled programs of a hundred exceed the memory maps


@pytest.mark.exhaustive  # every pair of kinds is decoded above
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_decodes(name):
    settings = {"model.dtype": "float32", "model.vocab_size": str(VOCAB)}
    found = config.load(name, settings).model
    assert_decodes(found, model.init(found, jax.random.key(0)), ONE_BY_ONE)
    jax.clear_caches()


def assert_decodes(config, params, chunks):
    """Asserts that steps give the logits of the forward pass, and that caches have their size."""
    if not config.is_incremental:
        with pytest.raises(ValueError, match="without a cache"):
            Decoder(params, config, Sampling())
        return
    logits, held = step_by_step(config, params, text(), chunks)
    whole = jax.jit(lambda params, tokens: forward(params, tokens, config, "causal")[0])
    want = whole(params, text())
    if error(logits, want) > tol(jnp.float32, 64):  # some models amplify any rounding
        assert error(logits, want) <= 4 * error(whole(rounded(params), text()), want)
    plan, ends = config.schedule, sum(config.ends.values())
    owners = set(plan.owners.tolist())
    keys = lambda step: config.step_blocks[step].mixer.key_width
    values = lambda step: config.step_blocks[step].cache_entries() - keys(step)
    entries = ends * config.end_block.cache_entries() + sum(map(keys, owners))
    entries += sum(map(values, range(plan.num_steps) if plan.replays else owners))
    entries *= config.parallel.num_copies
    wide = config.embed.row_width(config.end_block.embed_dim)
    entries += config.embed.attention.cache_entries(wide) if config.embed.attention else 0
    assert held.num_bytes == 4 * entries * LENGTH * BATCH


def rounded(params):
    """Returns weights each of which differs by a unit in its last place."""
    rng = np.random.default_rng(0)
    unit = lambda leaf: jnp.finfo(leaf.dtype).eps * rng.choice([-1, 1], leaf.shape)
    return jax.tree.map(lambda leaf: leaf * (1 + unit(leaf)).astype(leaf.dtype), params)


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


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [each if each in FIRST else exhaustive(each) for each in EARLY])
def test_early_exits_save_blocks_and_change_nothing(name):
    config, params, depth = early(name)
    alone = [step_by_step(config, params, text()[row][None], AFTER_PROMPT) for row in range(BATCH)]
    logits = jnp.concatenate([each for each, _ in alone])
    assert_close(logits, forward(params, text(), config, "causal")[0])
    for (_, held), deep in zip(alone, depth, strict=True):
        count = recursions_run(deep, config.depth.shows_stopped)
        assert held.num_blocks == config.schedule.num_blocks * count


def test_a_stopped_token_whose_keys_no_later_recursion_reads_does_not_catch_up():
    config, params, _ = early("act")
    config = dataclasses.replace(config, kv=kv.Plan("first_recursion"))
    _, held = step_by_step(config, params, text()[:1], AFTER_PROMPT)
    depth = np.asarray(forward(params, text()[:1], config, "causal")[1].depth_used)[0]
    assert any(np.diff(depth) > 0)
    assert held.num_blocks == config.schedule.num_blocks * recursions_run(depth, False)


PADDED = (*points.DEPTHS, *(name for name in EARLY if " " in name))
SIDES = [(True, name) if name in FIRST else exhaustive(True, name) for name in PADDED]
SIDES += [exhaustive(False, name) for name in PADDED]


@pytest.mark.few(1)
@pytest.mark.parametrize(("is_left", "name"), SIDES)
def test_padding_on_either_side_changes_nothing(name, is_left):
    """Caches have as many places as a text has tokens, fewer than the padded prompt is long."""
    if name in EARLY:
        config, params, _ = early(name)
    else:
        config = points.point(depth_=name)
        params = draw(config)
    tokens, lengths, width, count = np.asarray(text()), np.array([3, 7]), 16, LENGTH - 7
    shifts = width - lengths if is_left else 0 * lengths
    places = np.arange(width) - shifts[:, None]
    after = lengths[:, None] + np.arange(count)
    places = np.concatenate([places, after], axis=1)
    is_text = (places >= 0) & ((places < lengths[:, None]) | (np.arange(width + count) >= width))
    positions = np.clip(places, 0, LENGTH - 1)
    given = np.take_along_axis(tokens, positions, axis=1)
    chunks = (width, *[1] * count)
    segments = jnp.asarray(is_text, jnp.int32)
    got, _ = step_by_step(config, params, given, chunks, jnp.asarray(positions), segments, LENGTH)
    want = forward(params, jnp.asarray(tokens), config, "causal")[0]
    assert_close(got[:, width:], jnp.take_along_axis(want, after[..., None], axis=1))


def test_a_routed_step_has_places_for_the_tokens_that_it_keeps():
    config = points.point(depth_="expert_choice", recursions=3)
    size = 96
    held = cache.empty(config, 1, size)
    places = [held.pasts["core"][owner].size for owner in sorted(held.pasts["core"])]
    assert places == [96, 96, 64, 64, 32, 32]
    assert held.num_bytes == accounting.cache_bytes_per_token(config, size) * size


@pytest.mark.parametrize("capacity", [(1.0, 0.9, 0.9), slow((1.0, 0.1, 0.1))])
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


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["expert_choice", exhaustive("exit_gate")])
def test_a_batch_never_changes_what_a_text_gets(depth):
    """One text fills its context of 16 tokens before the other, and one ends early."""
    config = early(depth)[0]
    decoder = Decoder(draw(config), config, Sampling(2.0))
    keys = jax.random.split(jax.random.key(0), 2)
    prompts = [text()[0].tolist(), text()[1, :5].tolist()]

    def drawn(rows, end=-1):
        chosen = [prompts[row] for row in rows]
        how = {"num_tokens": 2 * LENGTH, "window": 16, "end_of_text": end}
        return list(zip(*decode.stream(decoder, chosen, keys[np.array(rows)], **how), strict=True))

    together, alone = drawn([0, 1]), [drawn([0])[0], drawn([1])[0]]
    assert together == alone
    end = alone[0][3]
    assert end not in alone[0][:3]
    ended = drawn([0, 1], end)
    assert [token for token in ended[0] if token is not None] == list(alone[0][:3])
    kept = [token for token in ended[1] if token is not None]
    assert kept == list(alone[1][: len(kept)])


@pytest.mark.slow
def test_what_reads_whole_texts_decodes_without_a_cache():
    config = points.point(depth_="recurrent")
    depth = dataclasses.replace(config.depth, exit="kl", exit_threshold=0.01)
    config = dataclasses.replace(config, depth=depth)
    params, prompt = draw(config), text()[0, :PROMPT].tolist()
    with pytest.raises(ValueError, match="whole texts"):
        Decoder(params, config, Sampling(0.0))
    how = {"window": LENGTH, "sampling": Sampling(0.0), "end_of_text": -1}
    key = jax.random.key(0)
    drawn = decode.generate(params, config, prompt, num_tokens=4, key=key, **how)
    logits = forward(params, jnp.array([[*prompt, *drawn]]), config, "causal")[0][0]
    assert drawn == logits[PROMPT - 1 : -1].argmax(-1).tolist()
