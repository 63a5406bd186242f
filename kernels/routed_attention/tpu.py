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
    queries = grid.tokens(QUERIES, given.query, grad)
    keys = grid.tokens(KEYS, given.key, given.value)
    numbers = grid.numbers(made.lse, delta)

    def towards(by_key: bool) -> list[Array]:
        (mine, theirs), rows = (keys, queries) if by_key else (queries, keys), grid.rows
        acc = (grid.plan.config.keys if by_key else rows, width)
        return grid.call(
            functools.partial(_gradient_body, scoring.scale, by_key),
            [*mine, *theirs, *numbers],
            mine[: 1 + by_key],
            [acc, acc] if by_key else [acc, (rows, LANES), (rows, LANES)],
            by_key=by_key,
            name=f"routed_attention_{'key' if by_key else 'query'}",
            interpret=interpret,
        )

    (dq,), (dk, dv) = towards(False), towards(True)
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


def _gradient_body(scale, by_key, phases, x, y, their_x, their_y, lse, delta, *refs) -> None:
    """Sums the gradients of a kept block: of `x`, and by key of `y`.

    Queries come with the gradients of their outputs, and keys with their values. Where keys are
    kept they are the rows, so that no product needs a transpose of its left side.
    """
    count = 1 + by_key
    results, sums, rows = refs[:count], refs[count : 2 * count], refs[2 * count :]

    def start() -> None:
        for acc in sums:
            acc[...] = jnp.zeros_like(acc)
        for row, numbers in zip(rows, (lse, delta), strict=False):
            row[...] = upright(_side_by_side(numbers))

    def meet(hide: Any) -> None:
        scores = hide(_dot(_rows(x), _rows(their_x), ROWS) * scale)
        if by_key:
            of_lse, of_delta = _side_by_side(lse), _side_by_side(delta)
        else:
            of_lse, of_delta = (across(row[...], scores.shape[1]) for row in rows)
        p = jnp.exp(scores - of_lse)
        ds = p * (_dot(_rows(y), _rows(their_y), ROWS) - of_delta)
        for acc, weights, tokens in zip(sums, (ds, p), (their_x, their_y), strict=False):
            acc[...] += _dot(weights.astype(tokens.dtype), _rows(tokens), COLUMNS)

    def finish() -> None:
        for result, acc, factor in zip(results, sums, (scale, 1), strict=False):
            _put(result, acc[...] * factor)

    phases(start, meet, finish)
