"""A model may stop early, and go on where it has weights."""

import jax
import numpy as np
import pytest

from recursia import model
from recursia import params as parameters
from tests.helpers import by_hand, points
from tests.helpers.blocks import PUBLISHED
from tests.helpers.tiny import LENGTH, assert_close, draw, forward, text, tiny

MIXED = (
    ("attention", "recursion+block"),
    ("norms", "recursion"),
    ("mlp", ((0, 1), (2, 2), (3, 0))),
)
MODELS = {
    "fixed": tiny(sharing_="middle_cycle"),
    "first keys": tiny(sharing_="middle_cycle", kv="first_recursion"),
    "mixed": tiny(sharing_="middle_cycle", varies=MIXED),
    "expert_choice": tiny("expert_choice", "middle_cycle"),
    "expert_choice, one router": tiny("expert_choice", varies=(("router", "one"),)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_a_shallower_model_is_the_state_on_the_way(config):
    params, tokens = draw(config), text()
    states = forward(params, tokens, config)[1].states
    where = np.stack([np.arange(LENGTH), np.ones(LENGTH)])
    for depth in (1, 2, 3):
        early_config, early = model.at_depth(config, params, depth)
        logits, aux = forward(early, tokens, early_config)
        assert_close(aux.states, states[:depth])
        x = np.asarray(states[depth - 1][0], np.float64)
        for i in range(config.ends["coda"]):
            x, _ = by_hand.block(by_hand.pick(params["coda"], i), x, where, config.block)
        x = by_hand.norm(x, params["final_norm"], config.block.norm_eps)
        assert_close(logits[0], x @ np.asarray(params["embed"]["table"]).T)


KINDS = {
    **{name: points.point(name) for name in PUBLISHED},
    **{name: points.point(depth_=name) for name in points.DEPTHS},
}
# Where recursions have a size, fewer of them are larger.
KINDS = {name: config for name, config in KINDS.items() if not config.depth.scales_branches}


@pytest.mark.few(3)
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_shallower_model_has_the_first_states_or_is_refused(config):
    params = draw(config)
    states = forward(params, text(), config)[1].states
    for depth in (1, 2):
        try:
            shallow, cut = model.at_depth(config, params, depth)
        except ValueError as refusal:
            assert f"depth {depth}: " in str(refusal)
            continue
        assert_close(forward(cut, text(), shallow)[1].states, states[:depth], n=256)


@pytest.mark.parametrize(("depth", "plan"), [(d, p) for d in points.DEPTHS for p in points.PLANS])
def test_decoding_is_evaluation_for_every_policy_and_kv_plan(depth, plan):
    """Decoding ends a loop over recursions when no token goes on; evaluation runs all of them."""
    try:
        config = points.point(depth_=depth, kv_sharing=plan)
    except ValueError as refusal:
        assert "kv_sharing" in str(refusal)
        return
    params = draw(config)
    evaluated, decoded = (forward(params, text(), config, mode) for mode in ("eval", "causal"))
    if config.modes == ("eval",):
        assert_close(decoded[0], evaluated[0], n=256)
        assert np.array_equal(decoded[1].depth_used, evaluated[1].depth_used)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_full_depth_is_the_model_itself(config):
    params = draw(config)
    same_config, same = model.at_depth(config, params, 3)
    assert (same_config.schedule, same_config.depth) == (config.schedule, config.depth)
    assert jax.tree.all(jax.tree.map(np.array_equal, same, params))


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_a_model_at_a_depth_has_the_parameters_it_declares(config):
    early_config, early = model.at_depth(config, draw(config), 1)
    declared = parameters.abstract(model.specs(early_config))
    assert jax.tree.map(np.shape, early) == jax.tree.map(lambda spec: spec.shape, declared)


@pytest.mark.parametrize("kv", ["own", "first_recursion"])
@pytest.mark.parametrize("pattern", ["middle_cycle", "sequence"])
def test_shared_weights_may_go_deeper_than_trained(pattern, kv):
    config = tiny(sharing_=pattern, kv=kv)
    params = draw(config)
    deep_config, deep = model.at_depth(config, params, 5)
    assert deep_config.schedule == tiny(sharing_=pattern, kv=kv, recursions=5).schedule
    logits, aux = forward(deep, text(), deep_config)
    assert_close(logits, by_hand.forward(params, text(), deep_config)[0])
    assert np.all(aux.depth_used == 5)


@pytest.mark.parametrize(
    ("config", "depth", "why"),
    [
        (tiny(varies=(("mlp", "recursion+block"),)), 4, "mlp has weights for 3 recursions only"),
        (tiny(varies=(("norms", "recursion"),)), 4, "norms has weights for 3"),
        (tiny(varies=(("mlp", ((0, 1), (0, 1), (1, 0))),)), 4, "mlp has weights for 3"),
        (tiny(sharing_="none"), 9, "take at most 3"),
        (tiny("expert_choice"), 4, "take at most 3"),
        (tiny("expert_choice", varies=(("router", "one"),)), 4, "take at most 3"),
        (tiny(), 0, "at least 1"),
        (tiny("expert_choice"), 0, "at least 1"),
    ],
)
def test_a_depth_without_weights_is_refused_in_one_line(config, depth, why):
    with pytest.raises(ValueError, match=why) as refusal:
        model.at_depth(config, draw(config), depth)
    assert "\n" not in str(refusal.value)
