"""An auxiliary router learns which tokens are kept, and leaves the rest of the model as it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, model, params, sharding
from recursia.depth import expert_choice, routing
from recursia.sharing.remat import KEEP
from recursia.train import step
from tests.helpers import by_hand, slow
from tests.helpers.flops import traced
from tests.helpers.routed import assert_is_by_hand
from tests.helpers.tiny import (
    BLOCK,
    VOCAB,
    assert_close,
    draw,
    forward,
    gradient,
    is_equal,
    text,
    tiny,
)


def routed(**options):
    return tiny("expert_choice", **{"sampling": "aux_router", "blocks": 1, **options})


def without(tree):
    """Returns parameters or gradients of everything but the auxiliary router."""
    depth = {name: leaf for name, leaf in tree["depth"].items() if name != "aux_router"}
    return {**tree, "depth": depth}


@pytest.mark.parametrize(
    ("kv", "mode"), [("own", "eval"), ("own", "causal"), ("first_recursion", "causal")]
)
def test_it_is_its_formula(kv, mode):
    made = routed(recursions=2, kv=kv, temperature=1.5, capacity=(0.75, 0.5))
    assert_is_by_hand(made, mode)


def test_one_of_two_layers_shared_by_all_recursions_is_its_formula():
    assert_is_by_hand(routed(router="mlp", varies=(("router", "one"),)), "causal")


@pytest.mark.slow
def test_the_tokens_kept_in_training_are_those_without_it():
    weights = draw(routed())
    with_it = forward(weights, text(), routed(), "train")
    plain = forward(without(weights), text(), tiny("expert_choice", blocks=1), "train")
    assert is_equal(with_it[0], plain[0])
    assert is_equal(with_it[1].depth_used, plain[1].depth_used)


def test_it_is_what_decides_in_causal_mode():
    weights = draw(routed())
    depth = lambda weights: forward(weights, text(), routed(), "causal")[1].depth_used
    bank = weights["depth"]["aux_router"]
    turned = {**weights["depth"], "aux_router": {"out": -bank["out"]}}
    assert not is_equal(depth({**weights, "depth": turned}), depth(weights))
    scaled = {**weights["depth"], "aux_router": {"out": 3 * bank["out"]}}
    assert is_equal(depth({**weights, "depth": scaled}), depth(weights))


@pytest.mark.slow
@pytest.mark.parametrize("router", ["linear", slow("mlp")])
def test_no_gradient_passes_through_it(router):
    made, tokens = routed(recursions=2, router=router, aux_loss_weight=50.0), text()
    weights = draw(made)
    _, grads = gradient(weights, tokens, made)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads["depth"])) > 0
    other = {**weights["depth"], "aux_router": draw(made, 1)["depth"]["aux_router"]}
    _, same = gradient({**weights, "depth": other}, tokens, made)
    assert is_equal(without(same), without(grads))
    assert not is_equal(same["depth"], grads["depth"])
    plain = dataclasses.replace(made.depth, sampling="aux_loss", aux_loss_weight=0.0)
    alone = gradient(without(weights), tokens, dataclasses.replace(made, depth=plain))[1]
    assert_close(without(grads), alone)


def test_its_own_gradient_is_that_of_a_logistic_regression():
    made = routed(recursions=1, aux_loss_weight=0.5, capacity=(0.75,))
    weights, tokens = draw(made), text()
    _, reports = by_hand.forward(weights, tokens, made)
    states = np.asarray(weights["embed"]["table"], np.float64)[np.asarray(tokens)]
    want = np.zeros(16)
    for x, row in zip(states, reports, strict=True):
        logits, chosen, _ = row[0]
        want += (by_hand.sigmoid(logits) - chosen) @ x / tokens.size
    grads = gradient(weights, tokens, made)[1]["depth"]["aux_router"]["out"]
    assert_close(grads[0], 0.5 * want)


def updated(depth, lr=0.01):
    """Returns parameters before and after one update of a trainer."""
    run = config.load("mor:tiny", {"train.batch_size": "2", "train.seq_len": "12"})
    optimizer = dataclasses.replace(run.optimizer, learning_rate=lr, weight_decay=0.0)
    schedule = dataclasses.replace(run.schedule, kind="constant", warmup_steps=0)
    shape = dataclasses.replace(run.model, num_layers=5, block=BLOCK, depth=depth)
    run = dataclasses.replace(run, model=shape, optimizer=optimizer, schedule=schedule)
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:1])
    trainer = step.Trainer(run, run.model.sized(VOCAB), mesh)
    tokens = text()
    batch = {"tokens": tokens, "targets": tokens, "weights": jnp.ones(tokens.shape)}
    batch |= {"segment_ids": jnp.ones_like(tokens), "positions": jnp.arange(12) + 0 * tokens}
    state = trainer.init()
    before = jax.tree.map(np.array, state.params)
    return before, trainer.step_function(0)(state, trainer.put(batch))[0].params


@pytest.mark.slow
def test_an_update_leaves_the_rest_as_it_is_even_where_gradients_are_clipped():
    depth = expert_choice.ExpertChoice(3, sampling="aux_router", aux_loss_weight=1e4)
    before, after = updated(depth)
    # Not 1: a compiler leaves out that product, and rounds others in another order.
    _, light = updated(dataclasses.replace(depth, aux_loss_weight=2.0))
    assert is_equal(without(after), without(light))
    # Adam's first step is the learning rate, whatever the gradient's size.
    moved = np.abs(after["depth"]["aux_router"]["out"] - before["depth"]["aux_router"]["out"])
    assert np.allclose(np.median(moved), 10 * 0.01, rtol=1e-3)


def test_a_shallower_model_has_the_first_of_its_routers():
    made = routed()
    weights = draw(made)
    cut, first = model.at_depth(made, weights, 2)
    for name in ("router", "aux_router"):
        assert is_equal(first["depth"][name]["out"], weights["depth"][name]["out"][:2])
    logits, _ = forward(first, text(), cut, "causal")
    assert_close(logits, by_hand.forward(first, text(), cut, "causal")[0])


@pytest.mark.parametrize("router", ["linear", "mlp"])
def test_it_costs_as_much_as_the_router_and_its_products_towards_its_input_are_not_made(router):
    made = tiny("expert_choice", "middle_cycle", router=router, sampling="aux_router")
    assert 2 * accounting.forward_flops(made, 12) == traced(lambda f: f, made, 12)
    scored = sum(p.scored for p in made.depth.passes(made.schedule, 12))
    d = BLOCK.embed_dim
    towards = scored * 2 * d * (1 if router == "linear" else 2 * d)
    both = traced(jax.value_and_grad, made, 12)
    assert 2 * (accounting.executed_training_flops(made, 12, KEEP) - towards) == both
    single = routing.specs(router, d)
    more = accounting.unique_parameters(made) - accounting.unique_parameters(
        tiny("expert_choice", "middle_cycle", router=router)
    )
    assert more == 3 * params.count(single)
