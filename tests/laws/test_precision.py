"""Which dtype computes, and which one sums."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import model
from recursia import params as parameters
from recursia.layers.rotary import rotate
from tests.helpers.copies import tied, untied
from tests.helpers.tiny import draw, gradient, loss, text, tiny

POLICIES = {
    "fixed": ("fixed", {}),
    "first keys": ("fixed", {"kv": "first_recursion", "sharing_": "sequence"}),
    "expert_choice": ("expert_choice", {"sharing_": "middle_cycle", "router": "mlp"}),
    "warming up": ("expert_choice", {"capacity_warmup_steps": 4, "z_loss_weight": 0.1}),
    "routed first keys": ("expert_choice", {"kv": "first_recursion", "score": "none"}),
}


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
    in_float32 = tied(config, gradient(free_params, text(), free_config)[1])["core"]
    ours = gradient(params, text(), config)[1]["core"]
    assert distance(ours, in_float32) < 1e-4

    def cast_outside(params):
        core = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params["core"])
        return loss({**params, "core": core}, text(), config)

    # What this law is for: were the weights cast outside the steps, bfloat16 would sum.
    assert distance(jax.jit(jax.grad(cast_outside))(params)["core"], in_float32) > 2e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("depth", "options"), POLICIES.values(), ids=POLICIES)
def test_no_dtype_is_promoted_in_silence(depth, options, dtype):
    config = tiny(depth, dtype=dtype, **options)
    params = parameters.abstract(model.specs(config))
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    with jax.numpy_dtype_promotion("strict"):
        for mode in ("train", "causal"):
            nats, grads = jax.eval_shape(
                lambda p, t, s, mode=mode: jax.value_and_grad(loss)(p, t, config, mode, s),
                params,
                tokens,
                step,
            )
            assert {leaf.dtype for leaf in jax.tree.leaves((nats, grads))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("depth", "options"), POLICIES.values(), ids=POLICIES)
def test_states_are_in_the_compute_dtype_and_what_is_measured_in_float32(depth, options, dtype):
    config = tiny(depth, dtype=dtype, **options)
    params = parameters.abstract(model.specs(config))

    def run(params):
        out = model.apply(params, text(), config, mode="train", step=jnp.int32(0))
        return out, model.logits(params, out.hidden, config)

    out, logits = jax.eval_shape(run, params)
    assert out.hidden.dtype == dtype
    assert out.aux.states is None or out.aux.states.dtype == dtype
    measured = (logits, out.aux.losses, out.aux.metrics)
    assert {leaf.dtype for leaf in jax.tree.leaves(measured)} == {jnp.dtype("float32")}


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
