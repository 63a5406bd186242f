"""Flash attention on a TPU: one step of the grid for each pair of blocks that is not masked.

Masked pairs cost nothing, not even a step. The query heads that read one key head are the rows of
one product, so that keys and values are loaded once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .tpu_grid import KEYS, LANES, QUERIES, Config, Grid, across, upright
from .where import UNSEEN, Inputs, Results, Scoring, by_token, decline

ROWS, COLUMNS = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ()))  # x @ y.T and x @ y


def forward(given: Inputs, *, scoring: Scoring, config: Config, interpret: Any = False) -> Results:
    """Returns the results of `reference.forward`."""
    grid, (batch, length, heads, width) = Grid.of(given, config), given.query.shape
    (query,) = grid.tokens(QUERIES, given.query)
    out, lse = grid.call(
        functools.partial(_forward_body, scoring.scale),
        [query, *grid.tokens(KEYS, given.key, given.value)],
        [query, (QUERIES, jax.ShapeDtypeStruct(query[1].shape[:-1], jnp.float32))],
        [(grid.rows, LANES), (grid.rows, LANES), (grid.rows, width)],
        name="routed_attention",
        interpret=interpret,
    )
    return Results(by_token(out)[:, :length], lse.reshape(batch, heads, -1)[..., :length])


def backward(
    given: Inputs,
    made: Results,
    grad: Float[Array, "B T N H"],
    *,
    scoring: Scoring,
    config: Config,
    interpret: Any = False,
) -> tuple[Array, Array, Array, None]:
    """Returns the results of `reference.backward`."""
    grid, (_, length, _, width) = Grid.of(given, config), given.query.shape
    delta = jnp.einsum("btnh,btnh->bnt", made.out, grad, preferred_element_type=jnp.float32)
    query, do = grid.tokens(QUERIES, given.query, grad)
    key, value = grid.tokens(KEYS, given.key, given.value)
    arrays = [query, key, value, do, *grid.numbers(made.lse, delta)]
    rows, keys = grid.rows, (grid.plan.config.keys, width)
    (dq,) = grid.call(
        functools.partial(_query_body, scoring.scale), arrays, [query],
        [(rows, LANES), (rows, LANES), (rows, width)],
        name="routed_attention_query", interpret=interpret,
    )  # fmt: skip
    dk, dv = grid.call(
        functools.partial(_key_body, scoring.scale), arrays, [key, value], [keys, keys],
        by_key=True, name="routed_attention_key", interpret=interpret,
    )  # fmt: skip
    dk, dv = (by_token(x)[:, : given.key.shape[1]] for x in (dk, dv))
    return by_token(dq)[:, :length], dk, dv, None


def sizes(given: Inputs, *_: Any, scoring: Scoring) -> Config:
    """Returns the computed sizes: up to 1024 x 512 scores.

    That is 2 MB in float32, a few of which fit into VMEM, and work enough (100 MFLOP at width 64)
    to hide the third of a microsecond that a step costs. Rows of less than 4096 keys take 256 at a
    time, since the diagonal wastes half a block; float32 takes half as many queries, for its
    products are of many passes.
    """
    query, key = given.query, given.key
    decline(given, scoring, (jnp.float32, jnp.bfloat16), 256)
    if scoring.window:
        raise NotImplementedError("it has no window")
    if query.shape[2] > 32 * key.shape[2]:
        raise NotImplementedError("it takes at most 32 query heads to a key head")
    each, rows = query.shape[2] // key.shape[2], 2048 // query.dtype.itemsize
    most = max(LANES, min(512, rows // each // LANES * LANES))
    keys = min(512 if key.shape[1] >= 4096 else 256, 512 * rows // (each * most))
    return Config(most, max(LANES, keys // LANES * LANES))


def _dot(x: Array, y: Array, dims: Any) -> Array:
    single = x.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if single else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)


def _rows(ref: Any) -> Array:
    """Returns the tokens of all heads of a block [G T H] as rows [G*T H]."""
    return ref[...].reshape(-1, ref.shape[-1])


def _side_by_side(ref: Any) -> Float[Array, "1 T"]:
    """Returns the numbers [G T] of all heads of a block as one row."""
    return jnp.concatenate([ref[i : i + 1, :] for i in range(ref.shape[0])], axis=1)


def _put(ref: Any, x: Array) -> None:
    ref[...] = x.astype(ref.dtype).reshape(ref.shape)


def _forward_body(scale, phases, query, key, value, out, lse, m, l, acc) -> None:
    each, length, width = query.shape

    def start() -> None:
        m[...] = jnp.full_like(m, UNSEEN)
        l[...] = jnp.zeros_like(l)
        acc[...] = jnp.zeros_like(acc)

    def meet(hide: Any) -> None:
        scores = hide(_dot(_rows(query), _rows(key), ROWS) * scale)
        m_new = jnp.maximum(m[...], scores.max(-1, keepdims=True))
        p = jnp.exp(scores - across(m_new, scores.shape[1]))
        alpha = jnp.exp(m[...] - m_new)
        l[...] = alpha * l[...] + p.sum(-1, keepdims=True)
        read = _dot(p.astype(value.dtype), _rows(value), COLUMNS)
        acc[...] = across(alpha, width) * acc[...] + read
        m[...] = m_new

    def finish() -> None:
        # A query that saw no key counted every key of its blocks.
        sees = m[...] > UNSEEN
        _put(out, acc[...] * across(jnp.where(sees, 1 / l[...], 0), width))
        lse_rows = jnp.where(sees, m[...] + jnp.log(l[...]), jnp.inf).T
        for i in range(each):
            lse[i : i + 1, :] = lse_rows[:1, i * length : (i + 1) * length]

    phases(start, meet, finish)


def _query_body(
    scale, phases, query, key, value, do, lse, delta, dq, lse_rows, delta_rows, acc
) -> None:
    def start() -> None:
        lse_rows[...] = upright(_side_by_side(lse))
        delta_rows[...] = upright(_side_by_side(delta))
        acc[...] = jnp.zeros_like(acc)

    def meet(hide: Any) -> None:
        scores = hide(_dot(_rows(query), _rows(key), ROWS) * scale)
        p = jnp.exp(scores - across(lse_rows[...], scores.shape[1]))
        dp = _dot(_rows(do), _rows(value), ROWS)
        ds = p * (dp - across(delta_rows[...], scores.shape[1]))
        acc[...] += _dot(ds.astype(key.dtype), _rows(key), COLUMNS)

    phases(start, meet, lambda: _put(dq, acc[...] * scale))


def _key_body(
    scale, phases, query, key, value, do, lse, delta, dk, dv, dk_acc, dv_acc
) -> None:
    def start() -> None:
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    def meet(hide: Any) -> None:
        # Keys are the rows here, so that no product needs a transpose of its left side.
        scores = hide(_dot(_rows(key), _rows(query), ROWS) * scale)
        p = jnp.exp(scores - _side_by_side(lse))
        dv_acc[...] += _dot(p.astype(do.dtype), _rows(do), COLUMNS)
        ds = p * (_dot(_rows(value), _rows(do), ROWS) - _side_by_side(delta))
        dk_acc[...] += _dot(ds.astype(query.dtype), _rows(query), COLUMNS)

    def finish() -> None:
        _put(dk, dk_acc[...] * scale)
        _put(dv, dv_acc[...])

    phases(start, meet, finish)
