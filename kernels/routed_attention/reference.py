"""Defines the result of attention, head by head and tile by tile; runs on a CPU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .tiles import by_keys, by_queries
from .where import Where, visible

UNSEEN = float(jnp.finfo(jnp.float32).min)  # the score of a masked key


def forward(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    where: Where,
    relative: Float[Array, "B T N R"] | None = None,
    *,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Returns the output of each query, and in float32 the log-sum-exp of its scores.

    The log-sum-exp is +inf for a query that sees no key, so that its probabilities exp(score - it)
    are zero.
    """

    tiles = by_queries(where, query.shape[1], key.shape[1], window)

    def one(query: Array, key: Array, value: Array, relative: Array | None, where: Where) -> Any:
        def rows(queries: slice, keys: slice) -> tuple[Array, Array]:
            tile = _tile(relative, where, queries, keys)
            scores = _scores(query[:, queries], key[keys], *tile, scale, window, cap)
            top = scores.max(-1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = weights.sum(-1, keepdims=True)
            mixed = _dot("gts,sh->gth", weights.astype(value.dtype), value[keys]) / total
            sees = top > UNSEEN
            out = jnp.where(sees, mixed, 0).astype(query.dtype)
            return out, jnp.where(sees, top + jnp.log(total), jnp.inf)[..., 0]

        return jax.tree.map(lambda *parts: _join(parts, 1), *[rows(*tile) for tile in tiles])

    split = lambda x: _by_key_head(x, key.shape[2])
    arrays = split(query), key.swapaxes(1, 2), value.swapaxes(1, 2), split(relative)
    out, logsum = _over_heads(one, arrays, _written_out(where, query, key))
    batch, length, heads, _ = query.shape
    return _by_token(out), logsum.reshape(batch, heads, length)


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
    window: int = 0,
    cap: float = 0.0,
) -> tuple[Array, Array, Array, Array | None]:
    """Returns the gradients of query, key, value and relative, from what `forward` returned."""

    tiles = by_keys(where, query.shape[1], key.shape[1], window)

    def one(
        query: Array, key: Array, value: Array, relative: Any, out: Array, logsum: Array,
        grad: Array, where: Where,
    ) -> Any:  # fmt: skip
        mean = _dot("gth,gth->gt", out, grad)[..., None]

        def columns(keys: slice, queries: slice) -> tuple[Array, Array, Array, Array | None]:
            tile = _tile(relative, where, queries, keys)
            q, k, v, dout = query[:, queries], key[keys], value[keys], grad[:, queries]
            scores = _scores(q, k, *tile, scale, window, cap)
            weights = jnp.exp(scores - logsum[:, queries, None])
            towards = weights * (_dot("gth,sh->gts", dout, v) - mean[:, queries])
            if cap:  # the slope of the tangent; 0 where nothing is seen
                towards *= 1 - (jnp.maximum(scores, -cap) / cap) ** 2
            further = None if relative is None else _towards_relative(towards, *tile)
            weights, towards = weights.astype(grad.dtype), towards.astype(query.dtype)
            rows = lambda x: x.reshape(-1, x.shape[-1])
            return (
                _dot("gts,sh->gth", towards, k) * scale,
                (_dot("rs,rh->sh", rows(towards), rows(q)) * scale).astype(key.dtype),
                _dot("rs,rh->sh", rows(weights), rows(dout)).astype(value.dtype),
                further,
            )

        to_query, to_keys, to_values, to_relative = zip(*[columns(*t) for t in tiles], strict=True)
        queries = [queries for _, queries in tiles]
        further = None
        if relative is not None:
            further = _added(relative.shape, queries, to_relative).astype(relative.dtype)
        return (
            _added(query.shape, queries, to_query).astype(query.dtype),
            _join(to_keys, 0),
            _join(to_values, 0),
            further,
        )

    split = lambda x: _by_key_head(x, key.shape[2])
    logsum = logsum.reshape(len(logsum), key.shape[2], -1, logsum.shape[-1])
    arrays = split(query), key.swapaxes(1, 2), value.swapaxes(1, 2), split(relative)
    arrays = *arrays, split(out), logsum, split(grad)
    query, key, value, relative = _over_heads(one, arrays, _written_out(where, query, key))
    further = None if relative is None else _by_token(relative)
    return _by_token(query), key.swapaxes(1, 2), value.swapaxes(1, 2), further


def _dot(equation: str, left: Array, right: Array) -> Array:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def _scores(
    query: Float[Array, "G T H"],
    key: Float[Array, "S H"],
    relative: Float[Array, "G T R"] | None,
    where: Where,
    scale: float,
    window: int,
    cap: float,
) -> Float[Array, "G T S"]:
    scores = _dot("gth,sh->gts", query, key) * scale
    if relative is not None:
        behind = _behind(where, relative.shape[-1])
        scores += jnp.take_along_axis(relative.astype(jnp.float32), behind[None], axis=-1)
    scores = cap * jnp.tanh(scores / cap) if cap else scores
    return jnp.where(visible(where, window), scores, UNSEEN)


def _behind(where: Where, count: int) -> Int[Array, "T S"]:
    """Returns how many positions each key is before each query, at most `count - 1`."""
    query_positions, key_positions, *_ = where.arrays
    behind = query_positions[:, None] - key_positions[None, :]
    return jnp.clip(behind, 0, count - 1)


def _towards_relative(
    towards: Float[Array, "G T S"], relative: Float[Array, "G T R"], where: Where
) -> Float[Array, "G T R"]:
    """Returns the gradient of the relative scores from that of all scores, in float32."""
    behind = _behind(where, relative.shape[-1])
    rows = jnp.arange(len(behind))[:, None]
    return jnp.zeros(relative.shape).at[:, rows, behind].add(towards)


def _tile(relative: Any, where: Where, queries: slice, keys: slice) -> tuple[Any, Where]:
    """Returns the relative scores and the places of a tile's queries and keys."""
    here, there, mine, its = where.arrays
    where = Where(here[queries], there[keys], mine[queries], its[keys])
    return None if relative is None else relative[:, queries], where


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


def _written_out(where: Where, query: Array, key: Array) -> Where:
    return where.written_out(query.shape[0], query.shape[1], key.shape[1])


def _by_key_head(x: Float[Array, "B T N H"] | None, groups: int) -> Array | None:
    """Returns [B K G T H]: query heads grouped by the key head that they read."""
    if x is None:
        return None
    batch, length, heads, width = x.shape
    return x.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)


def _by_token(x: Float[Array, "B K G T H"]) -> Float[Array, "B T N H"]:
    batch, groups, each, length, width = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * each, width)


def _over_heads(one: Callable, arrays: tuple[Any, ...], where: Where) -> Any:
    """Applies `one(*arrays, where)` to every row and key head of arrays [B K ...].

    In parallel, but on a CPU sequentially: there the scores of one head stay in the cache.
    """

    def walk(each: Callable) -> Callable:
        def row(entry: Any) -> Any:
            arrays, where = entry
            return each(lambda arrays: one(*arrays, where), arrays)

        return lambda arrays, where: each(row, (arrays, where))

    one_by_one = walk(lambda f, xs: jax.lax.map(f, xs))
    at_once = walk(lambda f, xs: jax.vmap(f)(xs))
    return jax.lax.platform_dependent(arrays, where, cpu=one_by_one, default=at_once)
