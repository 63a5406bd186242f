"""Probabilities of stopping, where tokens stop by them, and what the gate is taught."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import kv, model
from recursia.architecture import Model
from recursia.depth import exit_gate
from tests.helpers.tiny import (
    BLOCK,
    LENGTH,
    VOCAB,
    assert_close,
    draw,
    forward,
    is_equal,
    text,
)


def build(recursions=3, sharing="cycle", varies=(), kv_sharing="own", loop_norm="each", **options):
    depth = exit_gate.ExitGate(recursions, **options)
    return Model(
        2 * recursions,
        BLOCK,
        depth,
        sharing=sharing,
        varies=varies,
        kv=kv.Plan(kv_sharing),
        loop_norm=loop_norm,
    ).sized(VOCAB)


def with_gate(params, weight=0.0, bias=0.0):
    gate = {"weight": weight * params["depth"]["gate"]["weight"], "bias": jnp.float32(bias)}
    return {**params, "depth": {"gate": gate}}


@pytest.mark.parametrize("recursions", [1, 2, 5])
def test_probabilities_of_stopping_sum_to_one(recursions):
    made = build(recursions)
    _, aux = forward(draw(made), text(), made, "train")
    assert aux.exit_weights.shape == (recursions, *text().shape)
    assert_close(aux.exit_weights.sum(0), np.ones(text().shape))
    assert aux.exit_weights.min() > 0


def test_one_recursion_stops_there_for_certain():
    made = build(1)
    _, aux = forward(draw(made), text(), made, "train")
    assert np.array_equal(aux.exit_weights, np.ones((1, *text().shape)))
    assert np.array_equal(aux.exits["entropy"], np.zeros(text().shape))


def test_a_gate_of_even_odds_halves_what_is_left():
    made = build(4)
    _, aux = forward(with_gate(draw(made)), text(), made, "train")
    assert_close(aux.exit_weights[:, 0, 0], [1 / 2, 1 / 4, 1 / 8, 1 / 8])
    assert_close(aux.exits["entropy"][0, 0], 1.75 * np.log(2))


@pytest.mark.parametrize(("threshold", "steps"), [(0.4, 1), (0.5, 1), (0.6, 2), (0.8, 3), (1, 4)])
def test_a_token_stops_when_the_sum_reaches_the_threshold(threshold, steps):
    made = build(4, exit_threshold=threshold)
    params = with_gate(draw(made))  # p sums to 1/2, 3/4, 7/8, 1, and 1/2 is exact
    for mode in ("eval", "causal"):
        assert np.all(forward(params, text(), made, mode)[1].depth_used == steps)
    assert np.all(forward(params, text(), made, "train")[1].depth_used == 4)


@pytest.mark.parametrize("kv_sharing", ["own", "first_recursion"])
@pytest.mark.parametrize("threshold", [0.3, 0.6, 1.0])
def test_what_is_read_is_the_state_where_the_token_stopped(threshold, kv_sharing):
    made = build(exit_threshold=threshold, kv_sharing=kv_sharing)
    params = draw(made)
    logits, aux = forward(params, text(), made, "eval")
    _, trained = forward(params, text(), made, "train")
    sums = np.cumsum(trained.exit_weights[:-1], 0) >= threshold
    steps = np.where(sums.any(0), sums.argmax(0), made.schedule.num_recursions - 1)
    assert np.array_equal(aux.depth_used, steps + 1)
    assert is_equal(aux.states, trained.states)  # stopping changes no state
    picked = np.take_along_axis(np.asarray(aux.states), steps[None, ..., None], 0)[0]
    assert_close(logits, picked @ np.asarray(params["embed"]["table"]).T)
    causal, decoded = forward(params, text(), made, "causal")
    assert_close(causal, logits)
    assert np.array_equal(decoded.depth_used, aux.depth_used)
    if threshold < 1:
        assert len(np.unique(steps)) > 1


def test_recursions_that_no_wanted_token_needs_are_not_computed():
    made = build(varies=(("mlp", "recursion+block"),), exit_threshold=0.5)
    params = draw(made)
    params = {**params, "depth": {"gate": {"weight": jnp.zeros(16), "bias": jnp.float32(1.0)}}}
    want = forward(params, text(), made, "causal")[0]
    broken = jax.tree.map(lambda bank: bank.at[2:].set(jnp.nan), params["core"]["mlp"])
    broken = {**params, "core": {**params["core"], "mlp": broken}}
    got, aux = forward(broken, text(), made, "causal")
    assert is_equal(got, want) and np.all(aux.depth_used == 1)
    later = dataclasses.replace(made.depth, exit_threshold=0.9)
    assert np.isnan(
        forward(broken, text(), dataclasses.replace(made, depth=later), "causal")[0]
    ).all()


def test_the_loop_waits_for_wanted_tokens_only():
    made = build(varies=(("mlp", "recursion+block"),), exit_threshold=0.6)
    params = draw(made)
    logits, aux = forward(params, text(), made, "causal")
    assert aux.depth_used.min() == 1 and aux.depth_used.max() == 3
    first = aux.depth_used == 1
    broken = jax.tree.map(lambda bank: bank.at[2:].set(jnp.nan), params["core"]["mlp"])
    broken = {**params, "core": {**params["core"], "mlp": broken}}
    run = jax.jit(lambda params: model.apply(params, text(), made, mode="causal", wanted=first))
    for weights in (params, broken):
        got = model.logits(params, run(weights).hidden, made)
        assert_close(got[first], logits[first])


@pytest.mark.parametrize("recursions", [1, 2, 5])
def test_the_gate_serves_another_depth(recursions):
    made = build(3)
    params = draw(made)
    other, cut = model.at_depth(made, params, recursions)
    assert cut["depth"]["gate"]["weight"].shape == (16,)
    _, aux = forward(cut, text(), other, "train")
    _, whole = forward(params, text(), made, "train")
    both = min(recursions, 3)
    assert_close(aux.states[:both], whole.states[:both])
    for t in range(both - 1):  # the last of each takes what is left
        assert_close(aux.exit_weights[t], whole.exit_weights[t])
    assert_close(aux.exit_weights.sum(0), np.ones(text().shape))


@pytest.mark.parametrize("bias", [-200.0, 200.0])
def test_a_gate_that_is_certain_has_a_finite_gradient(bias):
    made = build(3)

    def loss(params):
        out = model.apply(params, text(), made, mode="train")
        nats = jnp.ones_like(out.aux.exit_weights)
        each = made.depth.stopping_loss(out.aux.exits, nats)
        return (each + (out.aux.exit_weights * jnp.arange(3.0)[:, None, None]).sum(0)).sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(with_gate(draw(made), 1.0, bias))
    assert abs(value - (0 if bias > 0 else 2 * text().size)) < 1e-3
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_stage_two_teaches_the_gate_whether_a_recursion_helped():
    rng = np.random.default_rng(0)
    config = exit_gate.ExitGate(4, stage=2)
    nats = rng.normal(3, 0.02, (4, 2, 5))
    scores = rng.normal(size=(4, 2, 5))
    exits = {"scores": jnp.asarray(scores, jnp.float32)}
    got = config.stopping_loss(exits, jnp.asarray(nats, jnp.float32))
    want = np.zeros((2, 5))
    for t in range(1, 4):
        gain = np.maximum(0, nats[t - 1] - nats[t])
        target = 1 / (1 + np.exp(-50 * (gain - 0.005)))
        stop = 1 / (1 + np.exp(-scores[t]))
        want -= (target * np.log(1 - stop) + (1 - target) * np.log(stop)) / 3
    assert np.allclose(got, want, rtol=1e-4)
    # An improvement asks the gate to open less, none to open more.
    towards = jax.grad(lambda s: config.stopping_loss({"scores": s}, falling).sum())
    falling = jnp.array([3.0, 2.0, 2.0, 2.5])[:, None, None]
    slope = towards(jnp.zeros((4, 1, 1)))[:, 0, 0]
    assert slope[0] == 0 and slope[1] > 0 and slope[2] < 0 and slope[3] < 0


def test_stage_one_charges_certainty():
    config = exit_gate.ExitGate(4, entropy_weight=0.25)
    entropy = jnp.arange(6.0).reshape(2, 3)
    got = config.stopping_loss({"entropy": entropy}, jnp.zeros((4, 2, 3)))
    assert np.array_equal(got, -0.25 * entropy)


def test_stage_two_gives_no_other_weight_a_gradient():
    made = build(3, stage=2)

    def loss(params):
        aux = model.apply(params, text(), made, mode="train").aux
        assert np.array_equal(aux.exit_weights.shape, (3, 2, LENGTH))
        each = made.depth.stopping_loss(aux.exits, jnp.zeros((3, 2, LENGTH)))
        return each.sum() + aux.exit_weights.sum()

    grads = jax.jit(jax.grad(loss))(draw(made))
    own = grads.pop("depth")
    assert all(np.any(g) for g in jax.tree.leaves(own))
    assert not any(np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stage": 3}, "stage: got 3, takes 1 or 2"),
        ({"entropy_weight": -1.0}, "entropy_weight: got -1.0"),
        ({"exit_threshold": 1.5}, "exit_threshold: got 1.5"),
        ({"sharing": "sequence", "loop_norm": "none"}, "exit_gate needs the state after each"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(arguments, said):
    with pytest.raises(ValueError, match=said) as refusal:
        build(**arguments)
    assert "\n" not in str(refusal.value)


def test_a_coda_is_refused():
    with pytest.raises(ValueError, match="2 blocks of a coda stand between") as refusal:
        Model(8, BLOCK, exit_gate.ExitGate(3), sharing="cycle", coda=2)
    assert "\n" not in str(refusal.value)
