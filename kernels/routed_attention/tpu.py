"""Flash attention on a TPU: one step of the grid for each pair of blocks that is not masked.

Masked pairs cost nothing, not even a step. The query heads that read one key head are the rows of
one product, so that keys and values are loaded once.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .sizes import LANES, OfTpu
from .tpu_grid import KEYS, QUERIES, Grid, Operand, across, upright
from .where import UNSEEN, Inputs, Results, Scoring, by_token

ROWS, COLUMNS = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ()))  # x @ y.T and x @ y


def forward(given: Inputs, *, scoring: Scoring, config: OfTpu, interpret: Any = False) -> Results:
    """Returns the results of `reference.forward`."""
    grid, (batch, length, heads, width) = Grid.of(given, config), given.query.shape
    query = grid.tokens(QUERIES, given.query)
    key, value = (grid.tokens(KEYS, x) for x in (given.key, given.value))
    lse = Operand(QUERIES, jax.ShapeDtypeStruct(query.array.shape[:-1], jnp.float32))
    out, lse = grid.call(
        functools.partial(_forward_body, scoring.scale),
        {"query": query, "key": key, "value": value},
        {"out": query, "lse": lse},
        {"m": (grid.rows, LANES), "l": (grid.rows, LANES), "acc": (grid.rows, width)},
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
    config: OfTpu,
    interpret: Any = False,
) -> tuple[Array, Array, Array, None]:
    """Returns the results of `reference.backward`."""
    grid, (_, length, _, width) = Grid.of(given, config), given.query.shape
    delta = jnp.einsum("btnh,btnh->bnt", made.out, grad, preferred_element_type=jnp.float32)
    queries = {"query": grid.tokens(QUERIES, given.query), "grad": grid.tokens(QUERIES, grad)}
    keys = {"key": grid.tokens(KEYS, given.key), "value": grid.tokens(KEYS, given.value)}
    numbers = {"lse": grid.numbers(made.lse), "delta": grid.numbers(delta)}
    rows, columns = (grid.rows, width), (grid.rows, LANES)
    (dq,) = grid.call(
        functools.partial(_query_body, scoring.scale),
        {**queries, **keys, **numbers},
        {"dq": queries["query"]},
        {"sum_dq": rows, "lse_rows": columns, "delta_rows": columns},
        name="routed_attention_query",
        interpret=interpret,
    )
    rows = grid.visits.blocks[KEYS], width
    dk, dv = dataclasses.replace(grid, by_key=True).call(
        functools.partial(_key_body, scoring.scale),
        {**keys, **queries, **numbers},
        {"dk": keys["key"], "dv": keys["value"]},
        {"sum_dk": rows, "sum_dv": rows},
        name="routed_attention_key",
        interpret=interpret,
    )
    dk, dv = (by_token(x)[:, : given.key.shape[1]] for x in (dk, dv))
    return by_token(dq)[:, :length], dk, dv, None


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


def _forward_body(scale, phases, refs) -> None:
    out, lse, m, l, acc = refs.out, refs.lse, refs.m, refs.l, refs.acc
    each, length, width = out.shape

    def start() -> None:
        m[...] = jnp.full_like(m, UNSEEN)
        l[...] = jnp.zeros_like(l)
        acc[...] = jnp.zeros_like(acc)

    def meet(hide: Any) -> None:
        scores = hide(_dot(_rows(refs.query), _rows(refs.key), ROWS) * scale)
        m_new = jnp.maximum(m[...], scores.max(-1, keepdims=True))
        p = jnp.exp(scores - across(m_new, scores.shape[1]))
        alpha = jnp.exp(m[...] - m_new)
        l[...] = alpha * l[...] + p.sum(-1, keepdims=True)
        read = _dot(p.astype(refs.value.dtype), _rows(refs.value), COLUMNS)
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


def _query_body(scale, phases, refs) -> None:
    """Sums the gradient of a kept block of queries."""
    dq, lse, delta = refs.sum_dq, refs.lse_rows, refs.delta_rows

    def start() -> None:
        dq[...] = jnp.zeros_like(dq)
        lse[...] = upright(_side_by_side(refs.lse))
        delta[...] = upright(_side_by_side(refs.delta))

    def meet(hide: Any) -> None:
        scores = hide(_dot(_rows(refs.query), _rows(refs.key), ROWS) * scale)
        of_lse, of_delta = (across(row[...], scores.shape[1]) for row in (lse, delta))
        p = jnp.exp(scores - of_lse)
        ds = p * (_dot(_rows(refs.grad), _rows(refs.value), ROWS) - of_delta)
        dq[...] += _dot(ds.astype(refs.key.dtype), _rows(refs.key), COLUMNS)

    phases(start, meet, lambda: _put(refs.dq, dq[...] * scale))


def _key_body(scale, phases, refs) -> None:
    """Sums the gradients of a kept block of keys, which are rows: no left side is transposed."""
    dk, dv = refs.sum_dk, refs.sum_dv

    def start() -> None:
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    def meet(hide: Any) -> None:
        scores = hide(_dot(_rows(refs.key), _rows(refs.query), ROWS) * scale)
        lse, delta = _side_by_side(refs.lse), _side_by_side(refs.delta)
        p = jnp.exp(scores - lse)
        ds = p * (_dot(_rows(refs.value), _rows(refs.grad), ROWS) - delta)
        dk[...] += _dot(ds.astype(refs.query.dtype), _rows(refs.query), COLUMNS)
        dv[...] += _dot(p.astype(refs.grad.dtype), _rows(refs.grad), COLUMNS)

    def finish() -> None:
        _put(refs.dk, dk[...] * scale)
        _put(refs.dv, dv[...])

    phases(start, meet, finish)
