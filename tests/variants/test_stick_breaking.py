"""Stick-breaking halting is its recurrence, computed again by hand on each row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import injection, kinds, kv, model
from recursia.architecture import Model
from recursia.depth import stick_breaking
from tests.helpers import by_hand
from tests.helpers.blocks import published
from tests.helpers.tiny import (
    VOCAB,
    assert_close,
    draw,
    error,
    forward,
    gradient,
    is_equal,
    text,
)

BLOCK = published("llama", embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24)


def sticks(recursions=4, blocks=1, threshold=0.75, weight=0.5, **options):
    """Returns a model whose tokens halt at different recursions."""
    depth = stick_breaking.StickBreaking(recursions, threshold, weight)
    options = {"sharing": "cycle", "vocab_size": VOCAB, **options}
    layers = recursions * blocks + options.get("prelude", 0)
    return Model(layers, BLOCK, depth, **options).sized(VOCAB)


def forced(params, logit):
    """Returns parameters whose gate halts all tokens with this logit."""
    zero = jax.tree.map(jnp.zeros_like, params["depth"])
    gate = {**zero, "bias": zero["bias"] + 1.0, "out": zero["out"].at[:, 1].set(logit)}
    return {**params, "depth": gate}


def gate_by_hand(params, x):
    """Returns a token's probability of halting, of what is left."""
    w = by_hand.pick(params["depth"], ...)
    h = by_hand.gelu(x @ w["hidden"] + w["bias"])
    return by_hand.sigmoid(h @ (w["out"][:, 1] - w["out"][:, 0]))


def block_by_hand(weights, x, memory, where, config):
    """Returns a block's output whose keys and values are made of other states."""
    _, source = by_hand.block(weights, memory, where, config)
    return by_hand.block(weights, x, where, config, source)[0]


def told_by_hand(params, h, inputs, config):
    """Returns the states that a recursion starts from."""
    if config.inject.input == "adapter":
        return np.concatenate([h, inputs], -1) @ by_hand.pick(params["inject"], ...)["adapter"]
    return h + inputs if config.inject.input == "add" else h


def row_by_hand(params, x, where, config):
    """Returns a row's result, its terms of the loss, and how many recursions took each token.

    As published, keys are of the expected state; for later blocks of a recursion, of what the
    expectation would be with this block's input as the part that goes on.
    """
    depth, plan, inputs = config.depth, config.schedule, x
    h, expected, halted = x, x, np.zeros_like(x)
    left, steps, used = np.ones(len(x)), np.zeros(len(x)), np.zeros(len(x), int)
    for r in range(plan.num_recursions):
        if r:
            share = left * gate_by_hand(params, h)
            halted = halted + share[:, None] * h
            steps, left = steps + (r - 1) * share, left - share
        going = left >= 1 - depth.threshold
        rest = np.where(going, left, 0)[:, None]
        y = told_by_hand(params, h, inputs, config)
        told = y - h
        for k in range(plan.num_blocks):
            within = halted + (1 - rest) * told + rest * y
            memory = expected + told if k == 0 else np.where(rest > 0, within, expected + told)
            weights = by_hand.step_weights(params, plan, r, k)
            y = block_by_hand(weights, y, memory, where, config.block)
        h, used = y, used + going
        expected = np.where(going[:, None], halted + rest * h, expected)
    return expected, steps + rest[:, 0] * (plan.num_recursions - 1), used


def by_hand_forward(params, tokens, config):
    """Returns logits, the halting loss, and how many recursions took each token."""
    rows = []
    for row in np.asarray(tokens):
        where = np.stack([np.arange(len(row)), np.ones(len(row))])
        x = np.asarray(params["embed"]["table"], np.float64)[row]
        rows.append(row_by_hand(params, x, where, config))
    x, ponder, used = map(np.stack, zip(*rows, strict=True))
    x = by_hand.norm(x, np.asarray(params["final_norm"], np.float64), config.block.norm_eps)
    logits = x @ np.asarray(params["embed"]["table"], np.float64).T
    return logits, config.depth.act_loss_weight * ponder.mean(), used


@pytest.mark.parametrize(
    ("blocks", "options"),
    [
        (1, {}),
        (2, {}),
        (1, {"inject": injection.Injection("adapter")}),
        (2, {"inject": injection.Injection("add"), "varies": (("norms", "recursion"),)}),
    ],
    ids=str,
)
def test_halting_is_its_recurrence_in_every_mode(blocks, options):
    config = sticks(blocks=blocks, **options)
    params, tokens = draw(config), text()
    logits, loss, used = by_hand_forward(params, tokens, config)
    assert 1 < used.min() + 1 < used.max() <= 4  # some halt, at different recursions
    for mode in ("train", "eval", "causal"):
        found, aux = forward(params, tokens, config, mode)
        assert_close(found, logits)
        assert np.array_equal(aux.depth_used, used)
        if mode != "causal":
            assert_close(aux.losses["halting"], loss)
            assert_close(aux.metrics["tokens_kept"], [(used > r).mean() for r in range(4)])


def test_a_threshold_of_one_masks_nothing():
    soft = sticks(threshold=1.0, blocks=2)
    params, tokens = draw(soft), text()
    logits, aux = forward(params, tokens, soft)
    assert_close(logits, by_hand_forward(params, tokens, soft)[0])
    assert np.all(aux.depth_used == 4)
    assert error(forward(params, tokens, sticks(blocks=2))[0], logits) > 1e-3


@pytest.mark.slow
def test_the_gradient_is_that_of_the_recurrence():
    config = sticks(blocks=2, threshold=1.0)
    params, tokens = draw(config), text()
    ways = draw(config, seed=1)
    wide = lambda x: np.asarray(x, np.float64)
    move = lambda size: jax.tree.map(lambda p, v: wide(p) + size * wide(v), params, ways)

    def loss(params):
        logits, halting, _ = by_hand_forward(params, tokens, config)
        logits = logits[:, :-1] - np.log(np.exp(logits[:, :-1]).sum(-1, keepdims=True))
        taken = np.take_along_axis(logits, np.asarray(tokens)[:, 1:, None], -1)
        return halting - taken.mean()

    value, grads = gradient(params, tokens, config)
    assert_close(value, loss(move(0)))
    slope = (loss(move(1e-5)) - loss(move(-1e-5))) / 2e-5
    along = sum(jnp.vdot(g, v) for g, v in zip(*map(jax.tree.leaves, (grads, ways)), strict=True))
    np.testing.assert_allclose(along, slope, rtol=1e-3)


@functools.partial(jax.jit, static_argnames="threshold")
def walk(states, log_gates, threshold):
    """Returns the sticks after each of some recursions that gave these states and gates."""
    config = stick_breaking.StickBreaking(len(states), threshold)
    stick, sticks = stick_breaking.begin(jnp.zeros_like(states[0])), []
    for y, log_gate in zip(states, log_gates, strict=True):
        going = stick_breaking.is_going(stick, config)
        share = jnp.where(going, jnp.exp(stick.log_left), 0.0)[..., None]
        stick = stick_breaking.advance(stick, y, going, share, log_gate)
        sticks.append(stick)
    return sticks


def test_halted_parts_and_what_is_left_are_the_whole():
    logits = np.random.default_rng(0).normal(size=(6, 2, 5, 2)).astype(np.float32) * 2
    ones = jnp.ones((6, 2, 5, 3))
    for stick in walk(ones, jax.nn.log_softmax(logits), 0.9):
        assert_close(stick.halted[..., 0] + jnp.exp(stick.log_left), np.ones((2, 5)))
        assert_close(stick.expected, np.ones((2, 5, 3)))


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_token_that_halts_keeps_the_state_it_halted_with(at):
    states = jnp.asarray(np.random.default_rng(1).normal(size=(6, 1, 4, 3)), jnp.float32)
    logits = np.zeros((6, 1, 4, 2), np.float32)
    logits[..., 0], logits[at - 1, ..., 1] = 100.0, 200.0
    sticks = walk(states, jax.nn.log_softmax(logits), 0.999)
    for r, stick in enumerate(sticks):
        assert is_equal(stick.expected, states[min(r, at - 1)])
        assert np.all(stick.used == min(r + 1, at))
    assert np.all(sticks[-1].ponder == at - 1)


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_gate_that_never_halts_is_full_depth(blocks):
    config = sticks(blocks=blocks, weight=1.0)
    params = forced(draw(config), -100.0)
    logits, aux = forward(params, text(), config)
    plain = Model(
        4 * blocks, BLOCK, kinds.config_class("depth", "fixed")(4), sharing="cycle"
    ).sized(VOCAB)
    assert_close(logits, forward({**params, "depth": {}}, text(), plain)[0])
    assert_close(aux.losses["halting"], 3.0)
    assert np.all(aux.depth_used == 4)


def test_a_gate_that_halts_at_once_is_one_recursion():
    config = sticks(blocks=2, weight=1.0)
    params = forced(draw(config), 100.0)
    logits, aux = forward(params, text(), config)
    short, cut = model.at_depth(config, params, 1)
    assert_close(logits, forward(cut, text(), short)[0])
    assert aux.losses["halting"] == 0
    assert np.all(aux.depth_used == 1)


def test_a_halted_token_never_moves_again():
    config = sticks()
    aux = forward(draw(config), text(), config)[1]
    for r in range(1, 4):
        is_same = (aux.states[r] == aux.states[r - 1]).all(-1)
        assert np.array_equal(is_same, aux.depth_used <= r)


def test_decoding_stops_when_no_wanted_token_goes_on():
    config = sticks(sharing="none")
    params, tokens = draw(config), text()
    logits, aux = forward(params, tokens, config)
    used = np.asarray(aux.depth_used)
    assert used.min() < used.max()
    wanted = used == used.min()
    # Recursions that are not needed would show.
    poison = lambda bank: bank.at[used.min() :].set(jnp.nan)
    broken = {**params, "core": jax.tree.map(poison, params["core"])}
    run = lambda wanted: model.apply(broken, tokens, config, mode="causal", wanted=wanted)
    hidden = jax.jit(run)(wanted).hidden
    assert_close(model.logits(params, hidden, config)[wanted], logits[wanted])
    assert np.isnan(jax.jit(run)(~wanted).hidden).any()


@pytest.mark.slow
def test_half_precision_halts_in_float32():
    config = sticks(dtype="bfloat16", threshold=1.0)
    params, tokens = draw(config), text()
    logits, aux = forward(params, tokens, config)
    exact, halting, _ = by_hand_forward(params, tokens, config)
    assert aux.states.dtype == jnp.bfloat16
    assert aux.losses["halting"].dtype == jnp.float32
    assert error(logits, exact) < 0.1
    np.testing.assert_allclose(aux.losses["halting"], halting, rtol=0.02)
    value, grads = gradient(params, tokens, config)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharing": "sequence"}, "block by block"),
        ({"kv": kv.Plan("first_recursion")}, "kv_sharing: stick_breaking makes the keys"),
        ({"threshold": 0.0}, "threshold: got 0.0"),
        ({"threshold": 1.5}, "threshold: got 1.5"),
        ({"weight": -1.0}, "act_loss_weight: got -1.0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as refused:
        sticks(**options)
    assert "\n" not in str(refused.value)
