"""Defines the result of attention, head by head and tile by tile.

Heads are computed at once; on a CPU one after another, where the scores of one stay in the cache.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .relative import over_keys
from .tiles import by_keys, by_queries, is_by_place
from .where import UNSEEN, Inputs, Results, Scoring, Where, by_key_head, by_token, visible

Map = Callable[[Callable[..., Any], Any], Any]  # applies a function to each entry of arrays


def at_once(one: Callable[..., Any], entries: Any) -> Any:
    """Applies a function to all entries of arrays in parallel; `jax.lax.map`: one after another."""
    return jax.vmap(one)(entries)


def forward(given: Inputs, *, scoring: Scoring, each: Map = at_once) -> Results:
    """Returns the output of each query, and in float32 the log-sum-exp of its scores."""
    shape = given.where, given.query.shape[1], given.key.shape[1]
    tiles, read = by_queries(*shape, scoring.window), _reader(is_by_place(*shape))

    def one(head: Inputs) -> Results:
        parts = [_made(read(head, *tile)[0], scoring) for tile in tiles]
        return Results(*(_join(part, 1) for part in zip(*parts, strict=True)))

    out, lse = _over_heads(each, one, given)
    return Results(by_token(out), lse.reshape(len(lse), -1, lse.shape[-1]))


def backward(
    given: Inputs,
    made: Results,
    grad: Float[Array, "B T N W"],
    *,
    scoring: Scoring,
    each: Map = at_once,
) -> tuple[Array, Array, Array, Array | None]:
    """Returns the gradients of query, key, value and relative, from what `forward` returned."""
    shape = given.where, given.query.shape[1], given.key.shape[1]
    tiles, read = by_keys(*shape, scoring.window), _reader(is_by_place(*shape))
    rows = [queries for _, queries in tiles]

    def one(head: Inputs, out: Array, lse: Array, grad: Array) -> Any:
        delta = _dot("gth,gth->gt", out, grad)
        parts = [
            _pull(*read(head, at, keys), lse[:, at], delta[:, at], grad[:, at], scoring)
            for keys, at in tiles
        ]
        dq, dk, dv, further = zip(*parts, strict=True)
        dq = _added(head.query.shape, rows, dq).astype(head.query.dtype)
        of_relative = None
        if head.relative is not None:
            of_relative = _added(head.relative.shape, rows, further).astype(head.relative.dtype)
        return dq, _join(dk, 0), _join(dv, 0), of_relative

    groups = given.key.shape[2]
    lse = made.lse.reshape(len(made.lse), groups, -1, made.lse.shape[-1])
    more = by_key_head(made.out, groups), lse, by_key_head(grad, groups)
    dq, dk, dv, further = _over_heads(each, one, given, *more)
    further = None if further is None else by_token(further)
    return by_token(dq), dk.swapaxes(1, 2), dv.swapaxes(1, 2), further


def _reader(is_by_place: bool) -> Callable[[Inputs, slice, slice], tuple[Inputs, Any]]:
    """Returns a function to the tile of some queries and keys of one key head.

    Of the tile, query is [G T H], key and value are [S H], and relative is [G T S], in float32: the
    score of each key. The second result is the transpose that leads its gradient back, or None.
    """

    def read(head: Inputs, queries: slice, keys: slice) -> tuple[Inputs, Any]:
        here, there, mine, its = head.where.arrays
        where = Where(here[queries], there[keys], mine[queries], its[keys])
        tile = Inputs(head.query[:, queries], head.key[keys], head.value[keys], where)
        if head.relative is None:
            return tile, None
        first = queries.start - keys.start if is_by_place else None
        spread = functools.partial(over_keys, where=where, first=first)
        scores, pull = jax.vjp(spread, head.relative[:, queries].astype(jnp.float32))
        return tile._replace(relative=scores), pull

    return read


def _made(tile: Inputs, scoring: Scoring) -> Results:
    """Returns the output and the log-sum-exp of queries that see no key of other tiles."""
    scores = _scores(tile, scoring)
    m = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - m)
    total = weights.sum(-1, keepdims=True)
    mixed = _dot("gts,sh->gth", weights.astype(tile.value.dtype), tile.value) / total
    sees = m > UNSEEN
    out = jnp.where(sees, mixed, 0).astype(tile.query.dtype)
    return Results(out, jnp.where(sees, m + jnp.log(total), jnp.inf)[..., 0])


def _pull(
    tile: Inputs,
    pull: Callable[[Array], tuple[Array]] | None,
    lse: Float[Array, "G T"],
    delta: Float[Array, "G T"],
    grad: Float[Array, "G T W"],
    scoring: Scoring,
) -> tuple[Array, Array, Array, Array | None]:
    """Returns a tile's part of the gradients; of queries and relative scores in float32."""
    scores = _scores(tile, scoring)
    p = jnp.exp(scores - lse[..., None])
    ds = p * (_dot("gth,sh->gts", grad, tile.value) - delta[..., None])
    if scoring.cap:  # the slope of the tangent; 0 where nothing is seen
        ds *= 1 - (jnp.maximum(scores, -scoring.cap) / scoring.cap) ** 2
    further = None if pull is None else pull(ds)[0]
    p, ds = p.astype(grad.dtype), ds.astype(tile.query.dtype)
    rows = lambda x: x.reshape(-1, x.shape[-1])
    return (
        _dot("gts,sh->gth", ds, tile.key) * scoring.scale,
        (_dot("rs,rh->sh", rows(ds), rows(tile.query)) * scoring.scale).astype(tile.key.dtype),
        _dot("rs,rh->sh", rows(p), rows(grad)).astype(tile.value.dtype),
        further,
    )


def _dot(equation: str, left: Array, right: Array) -> Array:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def _scores(tile: Inputs, scoring: Scoring) -> Float[Array, "G T S"]:
    scores = _dot("gth,sh->gts", tile.query, tile.key) * scoring.scale
    scores = scores if tile.relative is None else scores + tile.relative
    scores = scoring.cap * jnp.tanh(scores / scoring.cap) if scoring.cap else scores
    return jnp.where(visible(tile.where, scoring.window), scores, UNSEEN)


def _join(parts: Any, axis: int) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _added(shape: tuple[int, ...], rows: list[slice], parts: Any) -> Array:
    """Returns the float32 sum of parts [G t ...], each of some rows of `shape` [G T ...]."""
    if len(parts) == 1:
        return parts[0]
    total = jnp.zeros(shape, jnp.float32)
    for row, part in zip(rows, parts, strict=True):
        total = total.at[:, row].add(part)
    return total


def _over_heads(each: Map, one: Callable[..., Any], given: Inputs, *more: Array) -> Any:
    """Applies `one(inputs, *more)` to every row and key head, of which `more` are [B K ...]."""
    query, key, value, _, relative = given
    groups = key.shape[2]
    relative = None if relative is None else by_key_head(relative, groups)
    heads = by_key_head(query, groups), key.swapaxes(1, 2), value.swapaxes(1, 2), relative, more

    def row(entry: Any) -> Any:
        heads, where = entry

        def head(arrays: Any) -> Any:
            query, key, value, relative, more = arrays
            return one(Inputs(query, key, value, where, relative), *more)

        return each(head, heads)

    return each(row, (heads, given.written_out()))
