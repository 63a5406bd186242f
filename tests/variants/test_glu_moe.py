"""Mixtures of gated experts and their routers: recurrent, lagged, ahead, and chains of passes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import params
from recursia.feedforward.ahead_moe import AheadMoE
from recursia.feedforward.chain_moe import ChainMoE
from recursia.feedforward.glu_moe import GluMoE
from recursia.feedforward.lagged_moe import LaggedMoE
from recursia.feedforward.recurrent_moe import RecurrentMoE
from recursia.layers.attention import Context
from recursia.layers.initial import Init
from recursia.train import balancing
from tests.helpers import exhaustive, points, trainers
from tests.helpers.tiny import BATCH, LENGTH, assert_close, draw, error, is_equal, normal

WIDTH, SIZES = 8, dict(num_experts=5, top_k=2, expert_dim=6, init=Init(std=0.5))
WHERE = Context(jnp.zeros((BATCH, LENGTH), jnp.int32))
H, OTHER = normal(BATCH, LENGTH, WIDTH), normal(BATCH, LENGTH, WIDTH, seed=1)


def weights_of(layer, seed=0):
    return params.init(layer.specs(WIDTH, 2), jax.random.key(seed))


def nothing(layer):
    return jnp.zeros((BATCH, LENGTH, layer.carried_dim(WIDTH)))


def step(layer, weights, h=H, carried=None):
    """Returns a step's output, what it hands on, and how often experts were taken by row."""
    return _step(layer, weights, h, nothing(layer) if carried is None else carried)


@functools.partial(jax.jit, static_argnums=0)
def _step(layer, weights, h, carried):
    y, carried, report = layer.step(weights, h, h, carried, WHERE)
    return y, carried, report["router"].taken


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(layer, weights, h):
    """Returns the output for one token [D]."""
    w = jax.tree.map(np.asarray, weights)
    glu = lambda gate, up, down: ((z := h @ gate) * sigmoid(z) * (h @ up)) @ down
    scores = sigmoid(h @ w["router"])
    best = np.argsort(-(scores + w["selection_bias"]), kind="stable")[: layer.top_k]
    parts = [
        scores[e] / scores[best].sum() * glu(*(w["experts"][n][e] for n in ("gate", "up", "down")))
        for e in best
    ]
    return layer.scale * sum(parts) + glu(*(w["shared_experts"][n] for n in ("gate", "up", "down")))


def test_chosen_and_constant_experts_are_those_of_the_equation():
    how = dict(score="sigmoid", is_renormalised=True, scale=1.5, has_selection_bias=True)
    layer = GluMoE(**SIZES, shared_dim=4, **how)
    weights = weights_of(layer) | {"selection_bias": jnp.array([0.0, 0.4, -0.4, 0.0, 0.2])}
    expected = [[by_hand(layer, weights, h) for h in row] for row in np.asarray(H)]
    assert_close(step(layer, weights)[0], np.array(expected))


def test_all_experts_with_one_weight_are_one_wide_layer():
    layer = GluMoE(**{**SIZES, "top_k": 5}, score="sigmoid")
    weights = weights_of(layer) | {"router": jnp.zeros((WIDTH, 5))}  # every score is one half
    up, down = (np.asarray(weights["experts"][name]) for name in ("up", "down"))
    gate = np.einsum("btd,edm->btem", H, weights["experts"]["gate"])
    hidden = gate * sigmoid(gate) * np.einsum("btd,edm->btem", H, up)
    assert_close(step(layer, weights)[0], np.einsum("btem,emd->btd", hidden, down) / 2)


def test_a_selection_bias_chooses_and_has_no_gradient():
    layer = GluMoE(**SIZES, has_selection_bias=True)
    weights = weights_of(layer) | {"selection_bias": jnp.array([9.0, 0, 0, 9.0, 0])}
    assert step(layer, weights)[2].sum(0).tolist() == [BATCH * LENGTH, 0, 0, BATCH * LENGTH, 0]
    loss = lambda weights: (step(layer, weights)[0] ** 2).sum()
    grads = jax.grad(loss)(weights)
    assert not grads["selection_bias"].any() and grads["router"].any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [GluMoE, exhaustive(ChainMoE)])
def test_an_update_moves_selection_biases_towards_an_even_share_and_nothing_else_does(kind):
    """Those of the core come first, then those of prelude and coda, which share nothing."""
    layer = kind(**SIZES, has_selection_bias=True, bias_rate=0.25)
    model = points.point(sharing="middle_cycle")
    block = dataclasses.replace(model.block, feedforward=layer)
    trainer = trainers.of(dataclasses.replace(model, block=block))
    state, batch = trainer.init(), trainers.batch()
    stacks = ("core", "prelude", "coda")
    biases = lambda state: np.concatenate([state.params[n]["selection_bias"] for n in stacks])
    want = 0 * biases(state)
    for at in range(2):
        state, metrics = trainer.step_function(at)(state, trainer.put(batch))
        shares = np.array([metrics[f"expert_share_{entry}"] for entry in range(len(want))])
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
        assert np.ptp(shares, axis=1).min() > 0
        want += 0.25 * np.sign(shares.mean(1, dtype="float32", keepdims=True) - shares)
        assert np.array_equal(biases(state), want)


def test_selection_biases_that_do_not_train_stay():
    model = points.point()
    layer = GluMoE(**SIZES, has_selection_bias=True)
    model = dataclasses.replace(model, block=dataclasses.replace(model.block, feedforward=layer))
    weights = draw(model)
    count = len(weights["core"]["selection_bias"])
    metrics = {f"expert_share_{at}": jnp.eye(5)[0] for at in range(count)}
    for is_trained in (False, True):
        trains = jax.tree.map(lambda _: is_trained, weights)  # noqa: B023
        after = balancing.after_step(weights, metrics, model, trains)["core"]["selection_bias"]
        assert np.array_equal(after, weights["core"]["selection_bias"]) != is_trained


def test_a_recurrent_router_is_its_equation_over_two_steps():
    layer = RecurrentMoE(**SIZES, router_dim=3)
    weights = weights_of(layer)
    cell = jax.tree.map(np.asarray, weights["router_cell"])
    state = np.zeros((BATCH, LENGTH, 3))
    carried = nothing(layer)
    for h in (H, OTHER):
        _, carried, _ = step(layer, weights, h, carried)
        z = np.asarray(h @ weights["router"]["into"])
        read = np.einsum("btp,pgq->gbtq", z, cell["input"]) + cell["input_bias"][:, None, None]
        kept = np.einsum("btp,pgq->gbtq", state, cell["state"]) + cell["state_bias"][:, None, None]
        reset, update = sigmoid(read[0] + kept[0]), sigmoid(read[1] + kept[1])
        state = (1 - update) * np.tanh(read[2] + reset * kept[2]) + update * state
        assert_close(carried, state)


def test_a_lagged_router_reads_the_step_before_and_its_own_in_the_first():
    layer = LaggedMoE(**SIZES)
    weights = weights_of(layer)
    plain = GluMoE(**SIZES)
    assert is_equal(step(layer, weights)[0], step(plain, weights)[0])
    _, handed_on, taken = step(layer, weights, OTHER, carried=H)
    assert is_equal(handed_on, OTHER)
    assert is_equal(taken, step(plain, weights)[2])  # whatever its own states are
    assert not is_equal(taken, step(plain, weights, OTHER)[2])


def test_a_router_ahead_takes_the_same_experts_in_every_step():
    layer = AheadMoE(**SIZES)
    weights = weights_of(layer)
    _, carried, first = step(layer, weights)
    _, again, second = step(layer, weights, OTHER, carried)
    assert is_equal(carried, H) and is_equal(again, H) and is_equal(first, second)


def test_a_chain_of_one_pass_is_a_mixture_and_passes_follow_each_other():
    one = ChainMoE(**SIZES, num_passes=1)
    weights = weights_of(one)
    plain, flat = GluMoE(**SIZES), weights | {"router": weights["router"][:, 0]}
    assert_close(step(one, weights)[0], step(plain, flat)[0])
    two = dataclasses.replace(one, num_passes=2)
    weights = weights_of(two)
    middle = H + step(plain, weights | {"router": weights["router"][:, 0]})[0]
    result = middle + step(plain, weights | {"router": weights["router"][:, 1]}, middle)[0]
    assert_close(step(two, weights)[0], result - H)
    assert_close(step(dataclasses.replace(two, writes="result"), weights)[0], result)
    same = dataclasses.replace(two, has_own_routers=False)
    assert weights_of(same)["router"].shape == (WIDTH, 1, 5)


def test_what_a_token_hands_on_passes_through_depth_and_no_further():
    """The state of a block's stream is that of its feed-forward; states alone reach the head."""
    block = points.block("pre_norm", feedforward="recurrent_moe")
    states = normal(BATCH, LENGTH, block.embed_dim)
    stream = block.opened(states)
    assert stream.shape[-1] == block.stream_dim == block.embed_dim + block.feedforward.router_dim
    assert is_equal(block.states(stream), states) and not stream[..., block.embed_dim :].any()
    weights = params.init(block.specs(2), jax.random.key(0))
    apply = jax.jit(lambda stream: block.apply(weights, stream, WHERE)[0])
    once = apply(stream)
    twice, forgot = apply(once), apply(block.opened(block.states(once)))
    assert once[..., block.embed_dim :].any() and error(twice, forgot) > 1e-3


def test_a_depth_that_scales_branches_refuses_what_is_handed_on():
    with pytest.raises(ValueError, match="hands on more"):
        points.point("pre_norm", "integration", feedforward="lagged_moe")
