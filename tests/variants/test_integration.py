"""Recursions as steps of an integration: their size, their order, and how many training takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, cache, kv, model
from recursia.architecture import Model
from recursia.depth.fixed import Fixed
from recursia.depth.integration import Integration, draw
from recursia.injection import Injection
from recursia.laws import numbers
from recursia.layers.attention import Context
from tests.helpers.blocks import arranged
from tests.helpers.tiny import BLOCK, VOCAB, assert_close, error, forward, is_equal, text


def build(depth, block=BLOCK, blocks=1, **options):
    """Returns a model whose recursions use the same blocks."""
    options = {"sharing": "cycle", **options}
    return Model(depth.num_recursions * blocks, block, depth, vocab_size=VOCAB, **options)


def weights(made):
    """Returns parameters of a smooth field, along which the states change slowly."""
    return numbers.draw(made, std=0.1)


def state(depth, params):
    """Returns the states after all steps of a model of two blocks."""
    return forward(params, text(), build(depth, blocks=2))[1].states[-1]


def test_as_many_steps_as_trained_are_the_fixed_model():
    fixed, made = build(Fixed(3), blocks=2), build(Integration(3), blocks=2)
    params = weights(made)
    assert is_equal(forward(params, text(), made)[0], forward(params, text(), fixed)[0])
    again = made.at_depth(6).at_depth(3)
    assert is_equal(forward(params, text(), again)[0], forward(params, text(), fixed)[0])
    assert error(forward(params, text(), made.at_depth(2))[0], forward(params, text(), fixed)[0])


def test_a_cache_holds_the_keys_of_all_steps_whatever_training_draws():
    drawn, fixed = build(Integration(8, sampled=(4, 6, 8))), build(Fixed(8))
    assert accounting.cache_bytes_per_token(drawn, 16) == accounting.cache_bytes_per_token(
        fixed, 16
    )


@pytest.mark.parametrize(("method", "gain"), [("euler", 2), ("heun", 4)])
def test_twice_as_many_steps_divide_the_error_by_the_power_of_the_order(method, gain):
    params = weights(build(Integration(1), blocks=2))
    exact = state(Integration(64, "heun", horizon=0.5), params)
    apart = [error(state(Integration(k, method, horizon=0.5), params), exact) for k in (8, 16)]
    assert 0.8 * gain < apart[0] / apart[1] < 1.2 * gain


def test_heun_is_the_mean_of_both_slopes_where_branches_read_the_same_states():
    block = arranged(BLOCK, "parallel_norm")
    made = build(Integration(1, "heun", horizon=0.5), block)
    params = weights(made)
    x = params["embed"]["table"][text()]
    entry = jax.tree.map(lambda leaf: leaf[0], params["core"])
    where = Context(jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]), is_row=True)
    slope = jax.jit(lambda x: block.apply(entry, x, where)[0] - x)
    first = slope(x)
    mean = (first + slope(x + 0.5 * first)) / 2
    assert_close(forward(params, text(), made)[1].states[0], x + 0.5 * mean)


@pytest.mark.parametrize(("method", "keys"), [("euler", "first_recursion"), ("heun", "own")])
def test_training_takes_the_steps_that_the_key_draws(method, keys):
    depth = Integration(4, method, horizon=3.0, sampled=(1, 3))
    made = build(depth, kv=kv.Plan(keys))
    params, seen = weights(made), set()
    run = jax.jit(lambda key: model.apply(params, text(), made, mode="train", key=key))
    for seed in range(4):
        out = run(key := jax.random.key(seed))
        count = int(draw(made.depth.sampled, key))
        assert (np.asarray(out.aux.depth_used) == count).all()
        alone, _ = forward(params, text(), made.at_depth(count))
        assert_close(model.logits(params, out.hidden, made), alone, n=256)
        seen.add(count)
    assert seen == {1, 3}


def test_the_cost_of_drawn_steps_is_their_mean():
    made = build(Integration(4, sampled=(1, 3)))
    cost = lambda depth: accounting.training_flops(made.at_depth(depth), 8)
    assert accounting.training_flops(made, 8) == (cost(1) + cost(3)) / 2
    assert accounting.mean_depth(made, 8) == 2


def test_a_cache_of_another_number_of_steps_is_refused():
    made = build(Integration(4))
    other = made.at_depth(2)
    params, held = cache.unstack(weights(made), other), cache.empty(made, 2, 4)
    where = dict(positions=jnp.zeros((2, 1), int), segment_ids=jnp.ones((2, 1), int))
    with pytest.raises(ValueError, match=r"core has keys of 4 steps, and the model makes .* 2;"):
        model.extend(params, text()[:, :1], other, held, **where)
    assert not build(Integration(4, "heun")).is_incremental


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (dict(block=arranged(BLOCK, "post_norm")), "changes the stream itself"),
        (dict(block=arranged(BLOCK, "sandwich_norm")), "changes the stream itself"),
        (dict(loop_norm="each"), "changes the stream itself"),
        (dict(inject=Injection(position="halves")), "is added whole"),
        (dict(varies=(("norms", "recursion+block"),)), "norms varies along them"),
        (dict(sharing="sequence"), "runs block by block"),
    ],
)
def test_what_is_no_field_is_refused(options, why):
    with pytest.raises(ValueError, match=why):
        build(Integration(3), **options)


@pytest.mark.parametrize("fields", [dict(sampled=(2, 4)), dict(horizon=0.0)])
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=r"sampled: got 4|horizon: got 0"):
        dataclasses.replace(Integration(3), **fields)
