"""Attention is softmax of what a query may see, on every machine, and so are its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia.kernels.dispatch import Op
from recursia.layers.attention import Context, KeysValues, attend
from tests.helpers.tiny import assert_close, tol

QUERIES = ([0, 1, 2, 3, 0, 1, 2], [1, 1, 1, 1, 2, 2, 2])
SUBSET = ([0, 2, 3, 0, 2], [1, 1, 1, 2, 2])  # a routed recursion's, of the tokens above


def contexts(*which):
    """Returns contexts of two rows each: the table, and the table in one segment."""
    row = lambda table: Context(
        jnp.array([table[0], range(len(table[0]))]), jnp.array([table[1], [1] * len(table[1])])
    )
    return [row(table) for table in which]


def plain(query, source, context, source_context):
    """Returns the same by the library function and a mask in full."""
    rows = zip(*map(np.asarray, (context.positions, context.segment_ids)), strict=True)
    columns = zip(
        *map(np.asarray, (source_context.positions, source_context.segment_ids)), strict=True
    )
    masks = [
        [
            [s <= t and i == j for s, j in zip(*column, strict=True)]
            for t, i in zip(*row, strict=True)
        ]
        for row, column in zip(rows, columns, strict=True)
    ]
    mask = jnp.array(masks)[:, None]
    return jax.nn.dot_product_attention(query, source.key, source.value, mask=mask)


@pytest.mark.parametrize("is_accelerator", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys"), [(QUERIES, QUERIES), (SUBSET, QUERIES), (SUBSET, SUBSET)]
)
def test_attention_and_its_gradients_are_those_of_the_plain_softmax(
    monkeypatch, queries, keys, is_accelerator
):
    if is_accelerator:  # what other machines than a CPU run, run here
        reference = lambda op, *arrays, backend, **static: op.reference(*arrays, **static)
        monkeypatch.setattr(Op, "__call__", reference)
    context, source_context = contexts(queries, keys)
    normal = np.random.default_rng(0).normal
    query = jnp.asarray(normal(size=(2, len(queries[0]), 4, 6)), jnp.float32)
    key, value = jnp.asarray(normal(size=(2, 2, len(keys[0]), 2, 6)), jnp.float32)

    def run(function):
        def total(query, key, value):
            mixed = function(query, KeysValues(key, value), context, source_context)
            return (mixed * jnp.cos(jnp.arange(mixed.size)).reshape(mixed.shape)).sum(), mixed

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))

    (_, mixed), grads = run(lambda *args: attend(*args))(query, key, value)
    (_, plain_mixed), plain_grads = run(plain)(query, key, value)
    assert_close(mixed, plain_mixed)
    assert_close(grads, plain_grads)


def test_a_query_meets_no_later_key_and_no_other_document():
    (context,) = contexts(QUERIES)
    query = jnp.zeros((2, 7, 4, 6))
    # Values that name their token: the mean over what a query sees says whom it saw.
    value = jnp.broadcast_to(2.0 ** jnp.arange(7)[:, None, None], (2, 7, 2, 6))
    seen = attend(query, KeysValues(jnp.zeros((2, 7, 2, 6)), value), context, context)[..., 0, 0]
    packed = [1, 3 / 2, 7 / 3, 15 / 4, 16, 48 / 2, 112 / 3]
    alone = [(2 ** (t + 1) - 1) / (t + 1) for t in range(7)]
    np.testing.assert_allclose(seen, [packed, alone], rtol=tol(jnp.float32, 7))
