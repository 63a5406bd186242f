"""Which tokens go on: tables written by hand, nesting, and what is left alone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from recursia.depth import expert_choice
from tests.helpers.tiny import LENGTH, VOCAB, draw, forward, gradient, is_equal, text, tiny


@pytest.mark.parametrize(
    ("scores", "count", "places"),
    [
        ((0.1, 0.9, 0.5, 0.5, 0.9, 0.0), 1, (1,)),
        ((0.1, 0.9, 0.5, 0.5, 0.9, 0.0), 2, (1, 4)),
        ((0.1, 0.9, 0.5, 0.5, 0.9, 0.0), 3, (1, 2, 4)),
        ((0.1, 0.9, 0.5, 0.5, 0.9, 0.0), 5, (0, 1, 2, 3, 4)),
        ((0.0, 0.0, 0.0, 0.0), 2, (0, 1)),
        ((-3.0, -2.0, -1.0), 2, (1, 2)),
        ((0.0, -0.0, 0.0), 1, (0,)),
    ],
)
def test_the_best_are_kept_in_order_and_ties_go_to_the_earlier(scores, count, places):
    kept = expert_choice.select(jnp.array([scores, scores[::-1]]), count)
    assert tuple(kept[0].tolist()) == places
    assert np.all(np.diff(kept, axis=1) > 0)


@pytest.mark.parametrize(
    ("recursions", "capacity", "length", "kept"),
    [
        (3, None, 2048, (2048, 1365, 682)),
        (4, None, 12, (12, 9, 6, 3)),
        (2, None, 5, (5, 2)),
        (3, None, 1, (1, 1, 1)),
        (3, (0.5, 0.5, 0.01), 10, (5, 5, 1)),
        (1, None, 7, (7,)),
    ],
)
def test_counts_are_whole_parts_of_all_tokens_and_at_least_one(recursions, capacity, length, kept):
    config = expert_choice.ExpertChoice(recursions, capacity)
    assert expert_choice.counts(config, length) == kept


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"capacity": (1.0, 0.5)}, "capacity: got 2 numbers for num_recursions 3"),
        ({"capacity": (0.5, 1.0, 0.5)}, "never grow"),
        ({"capacity": (1.0, 0.5, 0.0)}, "never grow"),
        ({"capacity": (1.5, 0.5, 0.5)}, "never grow"),
        ({"capacity": (1.0, float("nan"), 0.5)}, "never grow"),
        ({"capacity_warmup_steps": -1}, "capacity_warmup_steps: got -1"),
        ({"aux_loss_weight": -0.1}, "aux_loss_weight"),
        ({"z_loss_weight": -0.1}, "z_loss_weight"),
        ({"alpha": -0.1}, "alpha"),
        ({"temperature": 0.0}, "temperature: got 0.0"),
    ],
)
def test_capacities_that_cannot_be_are_refused_in_one_line(options, why):
    with pytest.raises(ValueError, match=why) as refusal:
        expert_choice.ExpertChoice(3, **options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kv", ["own", "first_recursion"])
@pytest.mark.parametrize("capacity", [None, (0.75, 0.5, 0.5)])
def test_each_recursion_keeps_its_count_of_those_kept_before(capacity, kv):
    config = tiny("expert_choice", capacity=capacity, kv=kv)
    counts = np.array(expert_choice.counts(config.depth, LENGTH))
    for seed in range(3):
        _, aux = forward(draw(config, seed), text(seed), config)
        # Were a later recursion to keep a token that an earlier one left, these would not agree.
        deeper = aux.depth_used[..., None] > np.arange(3)
        assert np.array_equal(deeper.sum(1), np.broadcast_to(counts, (2, 3)))
        assert_frozen_where_left(aux, draw(config, seed)["embed"]["table"][text(seed)])


@pytest.mark.parametrize("kv", ["own", "first_recursion"])
@pytest.mark.parametrize("mode", ["causal", "train"])
def test_masked_recursions_leave_the_others_alone_too(mode, kv):
    warmup = 4 if mode == "train" else 0
    config = tiny("expert_choice", capacity_warmup_steps=warmup, kv=kv)
    params = draw(config)
    _, aux = forward(params, text(), config, mode, step=jnp.int32(3))
    assert len(set(aux.depth_used.ravel().tolist())) > 1
    assert_frozen_where_left(aux, params["embed"]["table"][text()])


def assert_frozen_where_left(aux, x):
    """Asserts that a token's state moves while it is kept, and then never, bit for bit."""
    for r, state in enumerate(aux.states):
        is_moved = np.any(np.asarray(state) != np.asarray(x), axis=-1)
        assert np.array_equal(is_moved, aux.depth_used > r)
        x = state


def test_with_all_kept_the_router_loss_is_mean_softplus_of_minus_the_logit():
    config = tiny("expert_choice")
    params, tokens = draw(config), text()
    logits = params["embed"]["table"][tokens] @ params["depth"]["router"]["out"][0]
    entropy = forward(params, tokens, config)[1].metrics["router_cross_entropy"][0]
    np.testing.assert_allclose(entropy, np.logaddexp(0, -logits).mean(), rtol=1e-5)


@pytest.mark.slow
def test_routers_learn_from_the_selection_and_from_the_gate_alone():
    # With "additive" gating nothing but the auxiliary loss reaches a router.
    for gating, is_reached in (("additive", False), ("weighted", True)):
        config = tiny("expert_choice", recursions=2, blocks=1, gating=gating, aux_loss_weight=0.0)
        grads = gradient(draw(config), text(), config)[1]["depth"]["router"]["out"]
        assert bool(np.any(np.asarray(grads) != 0)) == is_reached
        taught = dataclasses.replace(
            config, depth=dataclasses.replace(config.depth, aux_loss_weight=0.1)
        )
        grads = gradient(draw(taught), text(), taught)[1]["depth"]["router"]["out"]
        assert np.all(np.any(np.asarray(grads) != 0, axis=-1))


@pytest.mark.parametrize("kv", ["own", "first_recursion"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_kept_tokens_do_not_see_another_documents_kept_tokens(mode, kv):
    config = tiny("expert_choice", kv=kv, capacity=(1.0, 0.75, 0.5))
    # Routers that score all alike keep the earliest tokens, whatever they are: 12, 9, 6 of them.
    params = draw(config)
    params = {**params, "depth": {"router": {"out": jnp.zeros((3, 16))}}}
    segments = jnp.array([[1] * 4 + [2] * 8] * 2)
    positions = jnp.array([[*range(4), *range(8)]] * 2)
    tokens = text()
    other = tokens.at[:, :4].set((tokens[:, :4] + 1) % VOCAB)
    (a, aux), (b, _) = (
        forward(params, ids, config, mode, positions, segments) for ids in (tokens, other)
    )
    assert np.array_equal(aux.depth_used, [[3] * 6 + [2] * 3 + [1] * 3] * 2)
    assert is_equal(a[:, 4:], b[:, 4:])
    assert not is_equal(a[:, :4], b[:, :4])


@pytest.mark.parametrize(
    ("options", "is_causal"),
    [
        ({"capacity": (1.0, 1.0, 1.0)}, True),
        ({"capacity": (1.0, 1.0, 0.99)}, False),
        ({"capacity": (1.0, 1.0, 1.0), "capacity_warmup_steps": 4}, True),
        ({"capacity_warmup_steps": 4}, False),
    ],
)
def test_a_model_that_leaves_tokens_out_says_that_it_looks_ahead(options, is_causal):
    config = tiny("expert_choice", **options)
    assert [config.is_causal(mode) for mode in ("train", "eval")] == [is_causal] * 2
    assert config.is_causal("causal")
