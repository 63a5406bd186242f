"""Rows in no group are zero, forward and backward, whatever they hold and memory held before.

Sizes that sum to less than the rows are those of a device whose peers hold the other groups.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from recursia import sharding
from recursia.kernels.grouped_matmul import (
    combine,
    combine_matmul,
    dispatch,
    dispatch_matmul,
    group_choices,
    grouped_matmul,
)
from recursia.layers import experts
from tests.helpers.kernels import (
    NEEDS_INTERPRETER,
    normal,
    run_interpreted,
    tolerance,
)

PLATFORMS = (
    (None, jnp.float32),
    (None, jnp.bfloat16),
    ("tpu", jnp.float32),
    pytest.param("cuda", jnp.float32, marks=NEEDS_INTERPRETER, id="mosaic_gpu"),
)


def assert_near(ours, expected, dtype=jnp.float32):
    scale = np.abs(expected).max(initial=1.0)
    # In bfloat16, each of up to four products in a row is rounded.
    near = {"rtol": 0, "atol": tolerance(dtype, 64 if dtype == jnp.float32 else 4)["atol"]}
    np.testing.assert_allclose(ours.astype(jnp.float32) / scale, expected / scale, **near)


@jax.custom_vjp
def spoil(rows, is_in):
    """Returns rows, and their gradient, with NaN where they are in no group."""
    return jnp.where(is_in[:, None], rows, jnp.nan)


spoil.defvjp(
    lambda rows, is_in: (spoil(rows, is_in), is_in), lambda is_in, g: (spoil(g, is_in), None)
)


@pytest.mark.parametrize(("platform", "dtype"), PLATFORMS)
def test_ops_and_their_gradients_are_those_of_the_choices_in_groups(monkeypatch, platform, dtype):
    tokens, k, num_groups, inner, width = 47, 3, 4, 6, 10
    x, g = normal(tokens, inner), normal(tokens, inner, seed=9)
    up = normal(num_groups, inner, width)
    down, weights = normal(num_groups, width, inner), normal(tokens, k)
    x, up, down, g = (a.astype(dtype) for a in (x, up, down, g))
    probes = tuple(jnp.zeros((tokens * k, size), dtype) for size in (width, inner, width, inner))
    if platform:
        run_interpreted(monkeypatch, platform)

    @jax.jit
    def ours(index, *args):
        groups = group_choices(index, num_groups)
        is_in = jnp.arange(tokens * k) < groups.sizes.sum()

        def run(x, up, down, weights, probes):
            first, second, third, fourth = probes
            rows, copies = dispatch_matmul(x, up, groups), dispatch(x, groups)
            y = grouped_matmul(spoil(rows, is_in) + first, down, groups.sizes)
            total = combine(spoil(y, is_in) + second, groups, weights)
            total += combine_matmul(spoil(rows, is_in) + third, down, groups, weights)
            total += combine(spoil(copies, is_in) + fourth, groups, weights)
            return total, (rows, copies, y)

        value, vjp, rows = jax.vjp(run, *args, probes, has_aux=True)
        *gradients, of_rows = vjp(g)
        outside = [jnp.where(is_in[:, None], 0, a) for a in (*rows, *of_rows)]
        return (value, *gradients), outside

    @jax.jit
    def plain(index, *args):
        def run(x, up, down, weights):
            weights = jnp.where(index < num_groups, weights, 0)
            entry = jnp.minimum(index, num_groups - 1)
            rows = jnp.einsum("td,tkdm->tkm", x, up[entry])
            y = jnp.einsum("tkm,tkmd->tkd", rows, down[entry])
            return jnp.einsum("tkd,tk->td", 2 * y + x[:, None], weights)

        value, vjp = jax.vjp(run, *(a.astype(jnp.float32) for a in args))
        return value, *vjp(g.astype(jnp.float32))

    index = np.random.default_rng(0).integers(0, num_groups, (tokens, k))
    one = np.where(np.arange(tokens * k).reshape(index.shape) == 17, num_groups, index)
    some = np.where(index < 2, index, num_groups)
    every = index, one, some, np.full_like(index, num_groups)
    for choices in (
        (some,) if platform == "cuda" or dtype == jnp.bfloat16 else every
    ):  # an interpreter takes its time
        args = jnp.asarray(choices), x, up, down, weights
        got, outside = ours(*args)
        assert [a.dtype for a in got] == [dtype] * 4 + [jnp.float32]
        for a, b in zip(got, plain(*args), strict=True):
            assert_near(a, b, dtype)
        assert not any(np.any(a) for a in outside)  # NaN is something


@pytest.mark.slow
@pytest.mark.parametrize("platform", (None, "tpu"))
def test_experts_of_another_device_are_as_if_they_were_here(monkeypatch, platform):
    rows, length, inner, width, num_experts, k = 4, 9, 8, 16, 4, 2
    index = np.random.default_rng(0).integers(0, num_experts, (rows, length, k))
    index[:2] = 0  # no choice of one device's tokens is of the other device's experts
    arrays = normal(rows, length, inner), jnp.asarray(index), normal(rows, length, k)
    shapes = (inner, width), (width, inner), (width,), (inner,)
    banks = tuple(normal(num_experts, *shape) for shape in shapes)

    def loss(x, weight, banks, index):
        up, down, up_bias, down_bias = banks
        choice = experts.Choice(index, weight)
        mlp = functools.partial(experts.expert_mlp, x, choice, up, down, jnp.tanh)
        y = mlp() + mlp(up_bias=up_bias, down_bias=down_bias)
        wide = experts.mix(experts.project(x, index, up), weight)
        return (y**2).sum() + ((wide + experts.project_and_mix(x, index, weight, up)) ** 2).sum()

    def step(x, index, weight, *banks):
        value, gradients = jax.value_and_grad(loss, (0, 1, 2))(x, weight, banks, index)
        return value[None], gradients

    value, expected = jax.jit(step)(*arrays, *banks)
    if platform:
        run_interpreted(monkeypatch, platform)
    sizes = dict.fromkeys(sharding.AXES, 1) | {"expert": 2}
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes), jax.devices()[:2])
    split = jax.shard_map(
        step, mesh=mesh, in_specs=P("expert"), out_specs=P("expert"), check_vma=False
    )
    values, gradients = jax.jit(split)(*arrays, *banks)
    assert_near(values.sum(), value[0])
    jax.tree.map(assert_near, gradients, expected)
