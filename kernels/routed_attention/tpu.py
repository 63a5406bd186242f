"""Flash attention on a TPU: one step of the grid for each pair of blocks that is not masked.

Masked pairs cost nothing, not even a step. The query heads that read one key head are the rows of
one product, so that keys and values are loaded once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .tpu_grid import LANES, Config, Cut, Plan
from .where import Inputs, Results, Scoring, decline

UNSEEN = float(np.finfo(np.float32).min)
ROWS, COLUMNS = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ()))  # x @ y.T and x @ y


def forward(given: Inputs, *, scoring: Scoring, config: Config, interpret: Any = False) -> Results:
    """Returns the results of `reference.forward`."""
    cut, plan = _planned(given, config)
    query, rows = cut.queries(given.query), cut.each * cut.query_block
    lse = jax.ShapeDtypeStruct(query.shape[:-1], jnp.float32)
    out, lse = cut.call(
        functools.partial(_forward_kernel, scale=scoring.scale),
        plan,
        given.where,
        [("queries", query), ("keys", cut.keys(given.key)), ("keys", cut.keys(given.value))],
        outs=[("queries", query), ("rows", lse)],
        scratch=[(rows, LANES), (rows, LANES), (rows, cut.width)],
        name="routed_attention",
        interpret=interpret,
    )
    return Results(cut.by_token(out), cut.by_query(lse))


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
    cut, plan = _planned(given, config)
    delta = jnp.einsum("btnh,btnh->bnt", made.out, grad, preferred_element_type=jnp.float32)
    query = "queries", cut.queries(given.query)
    key, value = ("keys", cut.keys(given.key)), ("keys", cut.keys(given.value))
    rows = ("rows", cut.rows(made.lse)), ("rows", cut.rows(delta))
    arrays = [query, key, value, ("queries", cut.queries(grad)), *rows]

    def call(kernel: Any, outs: list[Any], scratch: list[tuple[int, int]], name: str) -> Any:
        return cut.call(
            functools.partial(kernel, scale=scoring.scale),
            plan,
            given.where,
            arrays,
            by_key=outs[0] is key,
            outs=outs,
            scratch=scratch,
            name=f"routed_attention_{name}",
            interpret=interpret,
        )

    size, keys = cut.each * cut.query_block, (cut.key_block, cut.width)
    scratch = [(size, LANES), (size, LANES), (size, cut.width)]
    (dq,) = call(_query_kernel, [query], scratch, "query")
    dk, dv = call(_key_kernel, [key, value], [keys, keys], "key")
    return cut.by_token(dq), cut.by_key(dk), cut.by_key(dv), None


def _planned(given: Inputs, config: Config) -> tuple[Cut, Plan]:
    """Returns the cut and the plan, of the sizes of a plan that is given."""
    plan = given.where.plan
    if plan is not None:
        return Cut.of(given.query, given.key, plan.config), plan
    cut = Cut.of(given.query, given.key, config)
    return cut, cut.plan(given.where)


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
    """Returns the queries of all heads of a block [G T H] as rows [G*T H]."""
    return ref[...].reshape(-1, ref.shape[-1])


def _across(x: Shaped[Array, "T L"], width: int) -> Shaped[Array, "T W"]:
    """Returns a column repeated to a number of columns."""
    return x[:, :width] if width <= LANES else jnp.tile(x, (1, -(-width // LANES)))[:, :width]


def _upright(row: Array) -> Array:
    """Returns a row [1 T] as a column, repeated in every lane."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _side_by_side(ref: Any) -> Float[Array, "1 T"]:
    """Returns the rows [G T] of all heads of a block as one row."""
    return jnp.concatenate([ref[i : i + 1, :] for i in range(ref.shape[0])], axis=1)


def _hide(scores: Array, query_places: Any, key_places: Any, each: int) -> Array:
    """Returns scores [G*T S] with masked keys replaced."""
    keys = key_places.shape[1]
    behind = _across(_upright(query_places[0:1, :]), keys) >= key_places[0:1, :]
    sees = behind & (_across(_upright(query_places[1:2, :]), keys) == key_places[1:2, :])
    return jnp.where(jnp.concatenate([sees] * each), scores, UNSEEN)


def _forward_kernel(
    visit, query, key, value, query_places, key_places, out, lse, m, l, acc, *, scale,
) -> None:  # fmt: skip
    each, length, width = query.shape

    def start() -> None:
        m[...] = jnp.full_like(m, UNSEEN)
        l[...] = jnp.zeros_like(l)
        acc[...] = jnp.zeros_like(acc)

    def meet(apart: bool) -> None:
        scores = _dot(_rows(query), key[...], ROWS) * scale
        if apart:
            scores = _hide(scores, query_places, key_places, each)
        m_new = jnp.maximum(m[...], scores.max(-1, keepdims=True))
        p = jnp.exp(scores - _across(m_new, scores.shape[1]))
        alpha = jnp.exp(m[...] - m_new)
        l[...] = alpha * l[...] + p.sum(-1, keepdims=True)
        read = _dot(p.astype(value.dtype), value[...], COLUMNS)
        acc[...] = _across(alpha, width) * acc[...] + read
        m[...] = m_new

    def finish() -> None:
        # A query that saw no key counted every key of its blocks.
        sees = m[...] > UNSEEN
        share = jnp.where(sees, 1 / l[...], 0)
        result = (acc[...] * _across(share, width)).astype(out.dtype)
        out[...] = result.reshape(out.shape)
        lse_rows = jnp.where(sees, m[...] + jnp.log(l[...]), jnp.inf).T
        for i in range(each):
            lse[i : i + 1, :] = lse_rows[:1, i * length : (i + 1) * length]

    visit(start, meet, finish)


def _query_kernel(
    visit, query, key, value, grad, lse, delta, query_places, key_places, dq, lse_rows,
    delta_rows, acc, *, scale,
) -> None:  # fmt: skip
    def start() -> None:
        lse_rows[...] = _upright(_side_by_side(lse))
        delta_rows[...] = _upright(_side_by_side(delta))
        acc[...] = jnp.zeros_like(acc)

    def meet(apart: bool) -> None:
        scores = _dot(_rows(query), key[...], ROWS) * scale
        if apart:
            scores = _hide(scores, query_places, key_places, query.shape[0])
        p = jnp.exp(scores - _across(lse_rows[...], scores.shape[1]))
        ds = _dot(_rows(grad), value[...], ROWS) - _across(delta_rows[...], scores.shape[1])
        acc[...] += _dot((p * ds).astype(key.dtype), key[...], COLUMNS)

    def finish() -> None:
        result = (acc[...] * scale).astype(dq.dtype)
        dq[...] = result.reshape(dq.shape)

    visit(start, meet, finish)


def _key_kernel(
    visit, query, key, value, grad, lse, delta, query_places, key_places, dk, dv, dk_acc, dv_acc,
    *, scale,
) -> None:  # fmt: skip
    def start() -> None:
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    def meet(apart: bool) -> None:
        # Keys are the rows here, so that no product needs a transpose of its left side.
        scores = _dot(key[...], _rows(query), ROWS) * scale
        if apart:
            length = query.shape[1]
            at = lambda i: _across(_upright(key_places[i : i + 1, :]), length)
            sees = query_places[0:1, :] >= at(0)
            sees &= query_places[1:2, :] == at(1)
            scores = jnp.where(jnp.concatenate([sees] * query.shape[0], axis=1), scores, UNSEEN)
        p = jnp.exp(scores - _side_by_side(lse))
        dv_acc[...] += _dot(p.astype(grad.dtype), _rows(grad), COLUMNS)
        ds = _dot(value[...], _rows(grad), ROWS) - _side_by_side(delta)
        dk_acc[...] += _dot((p * ds).astype(query.dtype), _rows(query), COLUMNS)

    def finish() -> None:
        dk[...] = (dk_acc[...] * scale).astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)

    visit(start, meet, finish)
