"""A subset of a row's tokens: the k best against a sort, rows there and back against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from recursia.depth import subset
from tests.helpers.kernels import normal, tolerance

FEW = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan, 0.5, 1e-30], np.float32)
SIZES = [(1, 1, 1, 1), (2, 5, 3, 16), (2, 33, 20, 7)]  # B T C D
GATINGS = ("weighted", "additive", "delta", "replace")


def by_sorting(scores, k):
    """The oracle: a stable sort of each row, the greatest first."""
    scores = np.asarray(scores, np.float32)
    rank = np.where(np.isnan(scores), 2.0, np.sign(scores) * (scores != 0))
    order = [sorted(range(row.size), key=lambda t: (-r[t], -row[t] if r[t] < 2 else 0))
             for row, r in zip(scores, rank, strict=True)]  # fmt: skip
    return np.sort(np.array(order).reshape(scores.shape)[:, :k], axis=1)


def scored(kind, batch, length, dtype):
    if kind == "few":
        drawn = np.random.default_rng(length).choice(FEW, (batch, length))
        return jnp.asarray(drawn, dtype)
    return jnp.full((batch, length), -3.0, dtype) if kind == "equal" else normal(batch, length)


@pytest.mark.parametrize("batch, length, k", [(1, 1, 1), (2, 3, 2), (9, 130, 43), (1, 2100, 1400)])
@pytest.mark.parametrize("kind", ["few", "equal", "normal"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_best_are_the_first_of_a_stable_sort(kind, batch, length, k, dtype):
    scores = scored(kind, batch, length, dtype)
    np.testing.assert_array_equal(subset.select(scores, k), by_sorting(scores, k))


def drawn(batch, length, count, width, dtype=jnp.float32):
    """Returns states, an index, states after a recursion, and gates."""
    index = subset.select(normal(batch, length), count)
    states = [normal(batch, n, width, seed=n).astype(dtype) for n in (length, count)]
    return states[0], index, states[1], normal(batch, count)


def one_by_one(x, index, y, gate, gating, is_live):
    """The oracle: a loop over rows, in float32, rounded once."""
    out, wide = np.array(x, np.float32), np.asarray(y, np.float32)
    for b, c in np.ndindex(index.shape):
        if is_live is None or is_live[b, c]:
            old, new, g = out[b, index[b, c]], wide[b, c], np.float32(gate[b, c])
            change = {"weighted": g * new, "additive": new, "delta": g * (new - old)}
            out[b, index[b, c]] = new if gating == "replace" else old + change[gating]
    return out


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("has_padding", [False, True])
def test_states_are_put_where_they_were_taken_and_others_stay(sizes, gating, dtype, has_padding):
    x, index, y, gate = drawn(*sizes, dtype)
    is_live = jnp.arange(sizes[2])[None].repeat(sizes[0], 0) % 3 > 0 if has_padding else None
    out = subset.put(x, index, y, gate, gating, is_live=is_live)
    assert out.dtype == dtype
    wanted = one_by_one(x, index, y, gate, gating, is_live)
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, **tolerance(dtype, 2))
    stays = np.ones(x.shape[:2], bool)
    live = np.ones(index.shape, bool) if is_live is None else np.asarray(is_live)
    np.put_along_axis(stays, np.asarray(index), ~live, 1)
    assert (np.asarray(out == x).all(-1) >= stays).all()
    np.testing.assert_array_equal(
        subset.take(x, index), np.take_along_axis(np.asarray(x), np.asarray(index)[..., None], 1)
    )


@pytest.mark.parametrize("gating", GATINGS)
def test_gradients_are_those_of_the_definition(gating):
    x, index, y, gate = drawn(2, 6, 4, 3)

    def run(x, y, gate):
        taken = subset.take(x, index)
        return subset.put(x, index, y * jnp.tanh(taken), gate, gating)

    check_grads(run, (x, y, gate), order=1, modes=("rev",), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("gating", GATINGS)
def test_no_scatter_needs_atomics_or_an_order(gating):
    x, index, y, gate = drawn(2, 6, 4, 3, jnp.bfloat16)
    total = lambda *given: subset.put(given[0], index, *given[1:], gating).sum()
    both = lambda x, y, gate: total(x, y * subset.take(x, index), gate)
    text = str(jax.make_jaxpr(jax.grad(both, (0, 1, 2)))(x, y, gate))
    assert "scatter" in text
    assert "unique_indices=False" not in text and "indices_are_sorted=False" not in text
