"""Which dtype computes, and which one sums."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import model
from recursia import params as parameters
from recursia.laws.copies import tied, untied
from recursia.layers.rotary import rotate
from tests.helpers.tiny import draw, gradient, loss, text, tiny


def distance(ours, theirs):
    """Returns the relative distance of two trees as one vector."""
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    return np.linalg.norm(flat(ours) - flat(theirs)) / np.linalg.norm(flat(theirs))


def test_a_shared_weights_gradient_is_summed_in_float32():
    config = tiny(recursions=64, blocks=1, dtype="bfloat16")
    params = jax.tree.map(
        lambda p, s: 0.2 * p if s.is_decayed else p, draw(config), model.specs(config)
    )
    free_config, free_params = untied(config, params)
    in_float32 = tied(config, free_config, gradient(free_params, text(), free_config)[1])["core"]
    ours = gradient(params, text(), config)[1]["core"]
    assert distance(ours, in_float32) < 1e-4

    def cast_outside(params):
        core = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params["core"])
        return loss({**params, "core": core}, text(), config)

    # What this law is for: were the weights cast outside the steps, bfloat16 would sum.
    assert distance(jax.jit(jax.grad(cast_outside))(params)["core"], in_float32) > 2e-3


def test_bfloat16_is_near_float32():
    config = tiny("expert_choice", capacity=(1.0,) * 3)
    params = draw(config)
    exact = loss(params, text(), config)
    rounded = loss(params, text(), dataclasses.replace(config, dtype="bfloat16"))
    assert abs(exact - rounded) < 0.03 * exact
    assert exact != rounded


def test_angles_are_float32_whatever_the_heads_are():
    x = jnp.ones((1, 2, 1, 4))
    positions = jnp.array([[256, 257]])  # the same number in bfloat16
    exact, rounded = rotate(x, positions, 1e4), rotate(x.astype(jnp.bfloat16), positions, 1e4)
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.01)


@pytest.mark.parametrize("depth", ["fixed", "expert_choice"])
def test_parameters_are_float32(depth):
    config = tiny(depth, "middle_cycle", dtype="bfloat16")
    drawn = jax.eval_shape(lambda key: model.init(config, key), jax.random.key(0))
    declared = parameters.abstract(model.specs(config))
    assert jax.tree.all(
        jax.tree.map(lambda a, b: a.dtype == jnp.float32 == b.dtype, drawn, declared)
    )
    assert jax.tree.map(lambda a: a.shape, drawn) == jax.tree.map(lambda a: a.shape, declared)
