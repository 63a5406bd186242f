"""Expert choice is its published formula, computed again by hand on each row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting
from recursia.config import load
from recursia.errors import ConfigError
from tests.helpers import by_hand
from tests.helpers.blocks import flat
from tests.helpers.routed import assert_is_by_hand
from tests.helpers.tiny import (
    assert_close,
    draw,
    error,
    forward,
    text,
    tiny,
)

GATINGS = ("weighted", "additive", "delta", "replace")
SCORES = ("sigmoid", "tanh", "none")


@pytest.mark.parametrize(
    ("gating", "score", "router"),
    [(gating, score, "linear") for gating in GATINGS for score in SCORES]
    + [("weighted", score, "mlp") for score in SCORES],
)
def test_every_gating_and_score_is_its_formula(gating, score, router):
    how = {"gating": gating, "score": score, "router": router}
    options = {"capacity": (0.75, 0.5), "alpha": 0.4, "temperature": 1.5}
    assert_is_by_hand(tiny("expert_choice", recursions=2, blocks=1, **options, **how))


@pytest.mark.parametrize("mode", ["eval", "causal"])
@pytest.mark.parametrize("kv", ["own", "first_recursion"])
@pytest.mark.parametrize(
    ("pattern", "capacity"),
    [("middle_cycle", None), ("cycle", (0.75, 0.5, 0.5)), ("none", (1.0, 1.0, 0.25))],
)
def test_every_walk_is_its_formula(pattern, capacity, kv, mode):
    assert_is_by_hand(tiny("expert_choice", pattern, capacity=capacity, kv=kv), mode)


def test_training_keeps_what_evaluation_keeps():
    config = tiny("expert_choice")
    params = draw(config)
    assert_close(*(forward(params, text(), config, mode)[0] for mode in ("train", "eval")))


@pytest.mark.parametrize("kv", ["own", "first_recursion"])
def test_one_recursion_is_the_state_and_its_gated_block(kv):
    assert_is_by_hand(tiny("expert_choice", recursions=1, kv=kv))


def test_routers_shared_by_all_recursions_are_one():
    assert_is_by_hand(tiny("expert_choice", varies=(("router", "one"), ("mlp", "recursion"))))


@pytest.mark.parametrize("mode", ["eval", "causal"])
@pytest.mark.parametrize("kv", ["own", "first_recursion"])
def test_replacing_at_full_capacity_is_the_recursive_model(kv, mode):
    full = tiny("expert_choice", gating="replace", capacity=(1.0,) * 3, kv=kv)
    params = draw(full)
    plain = forward({**params, "depth": {}}, text(), tiny(kv=kv))[0]
    assert_close(forward(params, text(), full, mode)[0], plain)


@pytest.mark.parametrize("gating", ["weighted", "additive", "delta"])
def test_the_other_gatings_at_full_capacity_are_not(gating):
    full = tiny("expert_choice", gating=gating, capacity=(1.0,) * 3)
    params = draw(full)
    plain = forward({**params, "depth": {}}, text(), tiny())[0]
    assert error(forward(params, text(), full)[0], plain) > 1e-2


def test_losses_are_weighted_sums_over_recursions():
    config = tiny("expert_choice", aux_loss_weight=0.5, z_loss_weight=0.25)
    params, tokens = draw(config), text()
    _, reports = by_hand.forward(params, tokens, config)
    losses = forward(params, tokens, config)[1].losses
    logits = [np.concatenate([report[r][0] for report in reports]) for r in range(3)]
    assert_close(losses["router"], 0.5 * sum(by_hand.cross_entropy(reports, r) for r in range(3)))
    assert_close(losses["router_z"], 0.25 * sum((z**2).mean() for z in logits))
    assert set(losses) == {"router", "router_z"}
    assert set(forward(params, tokens, tiny("expert_choice"))[1].losses) == {"router"}


def test_metrics_say_what_the_routers_did():
    config = tiny("expert_choice")
    params, tokens = draw(config), text()
    _, reports = by_hand.forward(params, tokens, config)
    metrics = forward(params, tokens, config)[1].metrics
    for r in range(3):
        logits = np.concatenate([report[r][0] for report in reports])
        chosen = np.concatenate([report[r][1] for report in reports])
        gates = by_hand.gate_of(logits, config.depth)
        assert_close(metrics["router_agreement"][r], ((logits >= 0) == chosen).mean())
        assert_close(metrics["router_gate"][r], gates[chosen].mean())
        assert_close(metrics["router_z"][r], (logits**2).mean())
        assert_close(metrics["tokens_kept"][r], chosen.sum() / tokens.size)


def test_causal_mode_decides_by_the_middle_of_the_score():
    config = tiny("expert_choice", recursions=2, blocks=1, capacity=(0.5, 0.25))
    params = draw(config)
    table = np.zeros_like(params["embed"]["table"])
    table[:4, 0] = (1.0, -1.0, 0.0, 0.5)  # the router below reads this one feature
    router = np.zeros_like(params["depth"]["router"]["out"])
    router[0, 0] = 1.0
    router[1, 1] = -1e9  # the second recursion keeps those whose second feature is not positive
    blind = jax.tree.map(jnp.zeros_like, params["core"])  # a block that changes nothing
    params = {**params, "embed": {"table": table}, "depth": {"router": {"out": router}}}
    params = {**params, "core": blind}
    tokens = jnp.array([[0, 1, 2, 3]])
    _, aux = forward(params, tokens, config, "causal")
    assert np.array_equal(aux.depth_used, [[2, 0, 2, 2]])
    assert np.array_equal(aux.metrics["tokens_kept"], [0.75, 0.75])
    same = dataclasses.replace(config, depth=dataclasses.replace(config.depth, score="tanh"))
    assert np.array_equal(forward(params, tokens, same, "causal")[1].depth_used, [[2, 0, 2, 2]])


def test_in_causal_mode_a_capacity_that_does_not_fall_keeps_all():
    config = tiny("expert_choice", capacity=(1.0, 0.5, 0.5))
    params = draw(config)
    metrics = forward(params, text(), config, "causal")[1].metrics
    assert metrics["tokens_kept"][0] == 1
    assert 0 < metrics["tokens_kept"][1] < 1
    assert metrics["tokens_kept"][2] == metrics["tokens_kept"][1]


# Effective layers, recursions, and unique parameters without the embedding, as published.
RELEASED = {
    "135m_r2": (30, 2, 57),
    "135m_r4": (30, 4, 32),
    "360m": (32, 3, 118),
    "360m_token": (32, 3, 118),
    "360m_kv_share": (32, 3, 118),
    "360m_r2": (32, 2, 167),
    "360m_r4": (34, 4, 98),
    "730m_r2": (26, 2, 352),
    "730m_r4": (26, 4, 201),
    "1.7b_r2": (24, 2, 872),
    "1.7b_r4": (22, 4, 470),
}


@pytest.mark.parametrize("preset", RELEASED)
def test_a_released_size_has_the_published_parameters(preset):
    layers, recursions, millions = RELEASED[preset]
    made = load(f"mor:{preset}", {}).model.sized(49152)
    wide, plan = flat(made.block), made.schedule
    d, heads = wide.embed_dim, 2 * (wide.num_heads + wide.num_kv_heads) * wide.head_dim
    layer = d * heads + 3 * d * wide.mlp_dim + 2 * d
    assert (made.num_layers, plan.num_recursions) == (layers, recursions)
    unique = (2 + (layers - 2) // recursions) * layer + d + recursions * d
    assert accounting.unique_parameters(made) == unique + 49152 * d
    assert round(unique / 1e6) == millions


def test_a_variant_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match="tiny_token") as refusal:
        load("mor:tiny_tokens", {})
    assert "\n" not in str(refusal.value)
