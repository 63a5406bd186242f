"""Attention with keys in front that every query sees equals its definition, on kernels too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia.kernels.routed_attention import routed_attention
from recursia.kernels.routed_attention.where import Where, visible
from tests.helpers.kernels import NEEDS_INTERPRETER, normal, run_interpreted, tolerance

PREFIX = 3


def given(batch, length, key_length, heads, groups, width, dtype=jnp.float32):
    """Returns queries, keys and values, and keys and values in front."""
    query = normal(batch, length, heads, width, dtype=dtype)
    keys = lambda count, seed: normal(batch, count, groups, width, dtype=dtype, seed=seed)
    return query, keys(key_length, 1), keys(key_length, 2), keys(PREFIX, 3), keys(PREFIX, 4)


def anywhere(batch, length, key_length):
    """Returns positions and segments in no order, of which some queries see nothing."""
    rng = np.random.default_rng(0)
    draw = lambda count, of: jnp.asarray(rng.integers(0, of, (batch, count)), jnp.int32)
    return {
        "query_positions": draw(length, 9) - 3,
        "key_positions": draw(key_length, 9),
        "query_segments": draw(length, 3),
        "key_segments": draw(key_length, 2),
    }


def defined(query, key, value, before, further, where):
    """The definition, all queries at once."""
    batch, length, heads, width = query.shape
    sees = visible(Where(**where).written_out(batch, length, key.shape[1]))
    sees = jnp.concatenate([jnp.ones((batch, length, PREFIX), bool), sees], 2)[:, None]
    join = lambda front, own: jnp.concatenate([front, own], 1).repeat(heads // key.shape[2], 2)
    scores = jnp.einsum("btnh,bsnh->bnts", query, join(before, key)) * width**-0.5
    weights = jax.nn.softmax(jnp.where(sees, scores, -jnp.inf))
    return jnp.einsum("bnts,bsnh->btnh", weights, join(further, value))


def attended(query, key, value, before, further, where):
    return routed_attention(
        query, key, value, prefix_key=before, prefix_value=further, **where
    ).astype(jnp.float32)


def pulled(f, inputs, where):
    """Returns the output, and the gradients for a fixed cotangent."""

    def run(*inputs):
        out, pull = jax.vjp(lambda *inputs: f(*inputs, where), *inputs)
        return out, *pull(normal(*out.shape))

    return jax.jit(run)(*inputs)


@pytest.mark.parametrize("is_anywhere", [False, True])
def test_the_reference_and_its_gradients_are_the_definition(is_anywhere):
    size = (2, 5, 12) if is_anywhere else (2, 9, 9)
    inputs, where = given(*size, 4, 2, 4), anywhere(*size) if is_anywhere else {}
    pairs = zip(pulled(attended, inputs, where), pulled(defined, inputs, where), strict=True)
    for ours, wanted in pairs:
        np.testing.assert_allclose(ours, wanted, **tolerance(jnp.float32, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "dtype"),
    [("tpu", jnp.float32), pytest.param("cuda", jnp.bfloat16, marks=NEEDS_INTERPRETER)],
)
def test_kernels_have_their_part_of_the_gradient_of_both(monkeypatch, platform, dtype):
    inputs, where = given(1, 37, 42, 2, 1, 16, dtype), anywhere(1, 37, 42)
    wanted = pulled(attended, inputs, where)
    run_interpreted(monkeypatch, platform)
    for ours, theirs in zip(pulled(attended, inputs, where), wanted, strict=True):
        assert ours.dtype == theirs.dtype
        ours, theirs = (np.asarray(each, np.float32) for each in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, **tolerance(dtype, 64))
