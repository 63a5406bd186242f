"""Flash attention on a TPU: one step of the grid for each pair of blocks that is not masked.

Masked pairs cost nothing, not even a step. The query heads that read one key head are the rows of
one product, so that keys and values are loaded once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Shaped

from .tpu_grid import EVERY, FIRST, LANES, LAST, LIVE, Cut
from .where import Where

UNSEEN = float(np.finfo(np.float32).min)
ROWS, COLUMNS = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ()))  # x @ y.T and x @ y


def forward(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    where: Where,
    relative: Float[Array, "B T N R"] | None = None,
    *,
    scale: float,
    blocks: tuple[int, int] | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Returns the results of `reference.forward`; `blocks` holds queries of a head, and keys."""
    cut = _cut(query, key, relative, blocks)
    where, query_places, key_places = cut.places(where)
    rows = cut.each * cut.query_block
    out, logsum = cut.call(
        functools.partial(_forward_kernel, scale=scale),
        where,
        by_key=False,
        inputs=("queries", "keys", "keys", "query_places", "key_places"),
        outputs=(("queries", query.dtype), ("query_rows", jnp.float32)),
        scratch=((rows, LANES), (rows, LANES), (rows, cut.width)),
        name="routed_attention",
        interpret=interpret,
    )(cut.queries(query), cut.keys(key), cut.keys(value), query_places, key_places)
    return cut.by_token(out), cut.by_query(logsum)


def backward(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    where: Where,
    relative: Float[Array, "B T N R"] | None,
    out: Float[Array, "B T N H"],
    logsum: Float[Array, "B N T"],
    grad: Float[Array, "B T N H"],
    *,
    scale: float,
    blocks: tuple[int, int] | None = None,
    interpret: Any = False,
) -> tuple[Array, Array, Array, None]:
    """Returns the results of `reference.backward`; `blocks` holds queries of a head, and keys."""
    cut = _cut(query, key, relative, blocks)
    where, query_places, key_places = cut.places(where)
    mean = jnp.einsum("btnh,btnh->bnt", out, grad, preferred_element_type=jnp.float32)
    arrays = cut.queries(query), cut.keys(key), cut.keys(value), cut.queries(grad)
    arrays = *arrays, cut.query_rows(logsum), cut.query_rows(mean), query_places, key_places
    kinds = "queries", "keys", "keys", "queries", "query_rows", "query_rows"
    call = functools.partial(
        cut.call, where=where, inputs=(*kinds, "query_places", "key_places"), interpret=interpret
    )
    rows, keys = (cut.each * cut.query_block, cut.width), (cut.key_block, cut.width)
    (query,) = call(
        functools.partial(_query_kernel, scale=scale),
        by_key=False,
        outputs=(("queries", query.dtype),),
        scratch=((rows[0], LANES), (rows[0], LANES), rows),
        name="routed_attention_query",
    )(*arrays)
    key, value = call(
        functools.partial(_key_kernel, scale=scale),
        by_key=True,
        outputs=(("keys", key.dtype), ("keys", value.dtype)),
        scratch=(keys, keys),
        name="routed_attention_key",
    )(*arrays)
    return cut.by_token(query), cut.by_key(key), cut.by_key(value), None


def _cut(query: Array, key: Array, relative: Array | None, blocks: Any) -> Cut:
    if relative is not None:
        raise NotImplementedError("it adds no relative scores")
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"it takes float32 and bfloat16, not {query.dtype}")
    if query.shape[3] > 256:
        raise NotImplementedError(f"it takes heads of at most 256, not {query.shape[3]}")
    if query.shape[2] > 32 * key.shape[2]:
        raise NotImplementedError("it takes at most 32 query heads to a key head")
    return Cut.of(query, key, blocks)


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


def _on_visit(visit: Array, start: Any, meet: Any, finish: Any) -> None:
    """Runs the phases of a visit; the argument of `meet` says whether any key is masked."""
    flag = lambda which: (visit & which) == which
    pl.when(flag(FIRST))(start)
    pl.when(flag(LIVE | EVERY))(lambda: meet(False))
    pl.when(flag(LIVE) & ~flag(EVERY))(lambda: meet(True))
    pl.when(flag(LAST))(finish)


def _forward_kernel(
    visit: Array, query: Any, key: Any, value: Any, query_places: Any, key_places: Any,
    out: Any, logsum: Any, top: Any, total: Any, mixed: Any, *, scale: float,
) -> None:  # fmt: skip
    each, length, width = query.shape

    def start() -> None:
        top[...] = jnp.full_like(top, UNSEEN)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    def meet(apart: bool) -> None:
        scores = _dot(_rows(query), key[...], ROWS) * scale
        if apart:
            scores = _hide(scores, query_places, key_places, each)
        higher = jnp.maximum(top[...], scores.max(-1, keepdims=True))
        weights = jnp.exp(scores - _across(higher, scores.shape[1]))
        fade = jnp.exp(top[...] - higher)
        total[...] = fade * total[...] + weights.sum(-1, keepdims=True)
        read = _dot(weights.astype(value.dtype), value[...], COLUMNS)
        mixed[...] = _across(fade, width) * mixed[...] + read
        top[...] = higher

    def finish() -> None:
        # A query that saw no key counted every key of its blocks.
        sees = top[...] > UNSEEN
        share = jnp.where(sees, 1 / total[...], 0)
        result = (mixed[...] * _across(share, width)).astype(out.dtype)
        out[...] = result.reshape(out.shape)
        sums = jnp.where(sees, top[...] + jnp.log(total[...]), jnp.inf).T
        for i in range(each):
            logsum[i : i + 1, :] = sums[:1, i * length : (i + 1) * length]

    _on_visit(visit, start, meet, finish)


def _query_kernel(
    visit: Array, query: Any, key: Any, value: Any, grad: Any, logsum: Any, mean: Any,
    query_places: Any, key_places: Any, towards_query: Any, sums: Any, means: Any, total: Any,
    *, scale: float,
) -> None:  # fmt: skip
    def start() -> None:
        sums[...] = _upright(_side_by_side(logsum))
        means[...] = _upright(_side_by_side(mean))
        total[...] = jnp.zeros_like(total)

    def meet(apart: bool) -> None:
        scores = _dot(_rows(query), key[...], ROWS) * scale
        if apart:
            scores = _hide(scores, query_places, key_places, query.shape[0])
        weights = jnp.exp(scores - _across(sums[...], scores.shape[1]))
        towards = _dot(_rows(grad), value[...], ROWS) - _across(means[...], scores.shape[1])
        total[...] += _dot((weights * towards).astype(key.dtype), key[...], COLUMNS)

    def finish() -> None:
        result = (total[...] * scale).astype(towards_query.dtype)
        towards_query[...] = result.reshape(towards_query.shape)

    _on_visit(visit, start, meet, finish)


def _key_kernel(
    visit: Array, query: Any, key: Any, value: Any, grad: Any, logsum: Any, mean: Any,
    query_places: Any, key_places: Any, towards_key: Any, towards_value: Any,
    key_total: Any, value_total: Any, *, scale: float,
) -> None:  # fmt: skip
    def start() -> None:
        key_total[...] = jnp.zeros_like(key_total)
        value_total[...] = jnp.zeros_like(value_total)

    def meet(apart: bool) -> None:
        # Keys are the rows here, so that no product needs a transpose of its left side.
        scores = _dot(key[...], _rows(query), ROWS) * scale
        if apart:
            length = query.shape[1]
            at = lambda i: _across(_upright(key_places[i : i + 1, :]), length)
            sees = query_places[0:1, :] >= at(0)
            sees &= query_places[1:2, :] == at(1)
            scores = jnp.where(jnp.concatenate([sees] * query.shape[0], axis=1), scores, UNSEEN)
        weights = jnp.exp(scores - _side_by_side(logsum))
        value_total[...] += _dot(weights.astype(grad.dtype), _rows(grad), COLUMNS)
        towards = _dot(value[...], _rows(grad), ROWS) - _side_by_side(mean)
        key_total[...] += _dot((weights * towards).astype(query.dtype), _rows(query), COLUMNS)

    def finish() -> None:
        towards_key[...] = (key_total[...] * scale).astype(towards_key.dtype)
        towards_value[...] = value_total[...].astype(towards_value.dtype)

    _on_visit(visit, start, meet, finish)
