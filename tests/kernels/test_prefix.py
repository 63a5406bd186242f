"""Attention with keys in front that every query sees equals its definition, on kernels too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia.kernels.routed_attention import routed_attention
from recursia.kernels.routed_attention.where import Where, visible
from tests.helpers.kernels import NEEDS_INTERPRETER, normal, run_interpreted, tolerance
from tests.kernels.test_routed_attention import arrays, places

PREFIX = 3


def given(size, dtype=jnp.float32):
    """Returns queries, keys and values, and keys and values in front."""
    batch, _, _, _, groups, width = size
    front = [normal(batch, PREFIX, groups, width, dtype=dtype, seed=seed) for seed in (1, 2)]
    return [*arrays(*size, dtype=dtype), *front]


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


@pytest.mark.parametrize("kind", ["counted", "anywhere"])  # in the latter, some see no other key
def test_the_reference_and_its_gradients_are_the_definition(kind):
    size = (2, 5, 12, 4, 2, 4) if kind == "anywhere" else (2, 9, 9, 4, 2, 4)
    inputs, where = given(size), places(kind, *size[:3])
    pairs = zip(pulled(attended, inputs, where), pulled(defined, inputs, where), strict=True)
    for ours, wanted in pairs:
        np.testing.assert_allclose(ours, wanted, **tolerance(jnp.float32, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "dtype"),
    [("tpu", jnp.float32), pytest.param("cuda", jnp.bfloat16, marks=NEEDS_INTERPRETER)],
)
def test_kernels_have_their_part_of_the_gradient_of_both(monkeypatch, platform, dtype):
    size = (1, 37, 42, 2, 1, 16)
    inputs, where = given(size, dtype), places("anywhere", *size[:3])
    where = {name: jnp.asarray(each, jnp.int32) for name, each in where.items()}
    wanted = pulled(attended, inputs, where)
    run_interpreted(monkeypatch, platform)
    for ours, theirs in zip(pulled(attended, inputs, where), wanted, strict=True):
        assert ours.dtype == theirs.dtype
        ours, theirs = (np.asarray(each, np.float32) for each in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, **tolerance(dtype, 64))
