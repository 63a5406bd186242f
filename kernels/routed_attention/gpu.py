"""Flash attention on a GPU, in Triton (Dao, 2023, arXiv:2307.08691).

A program keeps one block of queries, or of keys, and loops over the blocks not masked for it.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .gpu_grid import Cut, Tiles, go_through
from .where import Where

UNSEEN = float(np.finfo(np.float32).min)
LOG2E = math.log2(math.e)  # exponents are of two, which the GPU has an instruction for


def forward(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    where: Where,
    relative: Float[Array, "B T N R"] | None = None,
    *,
    scale: float,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Returns the results of `reference.forward`."""
    _check(query, relative)
    # 128 x 64 scores and as many sums in float32 are half of the registers of four warps.
    tiles = tiles or _tiles(query, Tiles(128, 64, 4 if query.shape[-1] <= 64 else 8, 3))
    cut = Cut.of(query, key, tiles, interpret)
    out, logsum = cut.call(
        functools.partial(_forward_kernel, cut=cut, scale=scale),
        where,
        by_key=False,
        inputs=("queries", "keys", "keys"),
        outputs=(("queries", query.dtype), ("rows", jnp.float32)),
        name="routed_attention",
    )(query, key, value)
    return out, logsum


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
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> tuple[Array, Array, Array, None]:
    """Returns the results of `reference.backward`.

    Tiles are those of the pass that keeps queries; the pass that keeps keys swaps them.
    """
    _check(query, relative)
    # Scores, their gradients and up to two sums of 128 x 64: half of the registers of eight warps.
    tiles = tiles or _tiles(query, Tiles(128, 64, 8, 2))
    mean = jnp.einsum("btnh,btnh->bnt", out, grad, preferred_element_type=jnp.float32)
    arrays = query, key, value, grad, logsum, mean
    kinds = "queries", "keys", "keys", "queries", "rows", "rows"

    def call(kernel: Any, tiles: Tiles, by_key: bool, outputs: Any) -> list[Array]:
        cut = Cut.of(query, key, tiles, interpret)
        return cut.call(
            functools.partial(kernel, cut=cut, scale=scale),
            where,
            by_key=by_key,
            inputs=kinds,
            outputs=outputs,
            name="routed_attention_key" if by_key else "routed_attention_query",
        )(*arrays)

    turned = tiles._replace(queries=tiles.keys, keys=tiles.queries)
    (towards_query,) = call(_query_kernel, tiles, False, [("queries", query.dtype)])
    outputs = [("keys", key.dtype), ("keys", value.dtype)]
    towards_key, towards_value = call(_key_kernel, turned, True, outputs)
    return towards_query, towards_key, towards_value, None


def _check(query: Array, relative: Array | None) -> None:
    if relative is not None:
        raise NotImplementedError("it adds no relative scores")
    if query.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"it takes float32, bfloat16 and float16, not {query.dtype}")
    if query.shape[3] > 256:
        raise NotImplementedError(f"it takes heads of at most 256, not {query.shape[3]}")


def _tiles(query: Array, usual: Tiles) -> Tiles:
    """Returns smaller tiles if less fits, or if rows are short: the diagonal wastes less."""
    length, width = query.shape[1], query.shape[3]
    if query.dtype == jnp.float32:
        return Tiles(32, 32, 4, 1 if width > 128 else 2)
    if width > 128:
        return Tiles(64, 32, 8, 2)
    return usual if length >= 1024 else Tiles(64, 64, 4, usual.stages)


def _places(ref: Any, span: Any) -> tuple[Array, Array]:
    """Returns positions and segments of a block."""
    return ref[0, span.slice], ref[1, span.slice]


def _hide(scores: Array, queries: tuple[Array, Array], keys: tuple[Array, Array]) -> Array:
    """Returns scores with masked keys replaced; places are columns or rows."""
    return jnp.where((queries[0] >= keys[0]) & (queries[1] == keys[1]), scores, UNSEEN)


def _column(places: tuple[Array, Array]) -> tuple[Array, Array]:
    return places[0][:, None], places[1][:, None]


def _row(places: tuple[Array, Array]) -> tuple[Array, Array]:
    return places[0][None, :], places[1][None, :]


def _forward_kernel(
    block: Array, ends: Any, query_places: Any, key_places: Any, queries: Any, keys: Any,
    values: Any, out: Any, logsum: Any, *, cut: Cut, scale: float,
) -> None:  # fmt: skip
    here = cut.queries(block)
    query, mine = cut.load(queries, here), _column(_places(query_places, here))

    def meet(apart: bool, block: Array, carry: Any) -> Any:
        mixed, top, total = carry
        there = cut.keys(block, every=not apart)
        scores = cut.dot(query, cut.load(keys, there), transposed=True) * (scale * LOG2E)
        if apart:
            scores = _hide(scores, mine, _row(_places(key_places, there)))
        higher = jnp.maximum(top, scores.max(1))
        fade, weights = jnp.exp2(top - higher), jnp.exp2(scores - higher[:, None])
        value = cut.load(values, there)
        mixed = mixed * fade[:, None] + cut.dot(weights.astype(value.dtype), value)
        return mixed, higher, total * fade + weights.sum(1)

    nothing = jnp.zeros(query.shape, jnp.float32)
    rows = jnp.zeros(len(query), jnp.float32)
    mixed, top, total = go_through(ends, meet, (nothing, rows + UNSEEN, rows))
    sees = top > UNSEEN  # a query that saw no key counted every key of its blocks
    total = jnp.where(sees, total, 1.0)
    cut.store(out, here, jnp.where(sees[:, None], mixed / total[:, None], 0.0))
    cut.store(logsum, here, jnp.where(sees, (top + jnp.log2(total)) / LOG2E, jnp.inf))


def _query_kernel(
    block: Array, ends: Any, query_places: Any, key_places: Any, queries: Any, keys: Any,
    values: Any, grads: Any, logsum: Any, mean: Any, towards_query: Any,
    *, cut: Cut, scale: float,
) -> None:  # fmt: skip
    here = cut.queries(block)
    query, grad = cut.load(queries, here), cut.load(grads, here)
    sums = (cut.load(logsum, here) * LOG2E)[:, None]
    means = cut.load(mean, here)[:, None]
    mine = _column(_places(query_places, here))

    def meet(apart: bool, block: Array, total: Array) -> Array:
        there = cut.keys(block, every=not apart)
        key, value = cut.load(keys, there), cut.load(values, there)
        scores = cut.dot(query, key, transposed=True) * (scale * LOG2E)
        if apart:
            scores = _hide(scores, mine, _row(_places(key_places, there)))
        weights = jnp.exp2(scores - sums)
        towards = weights * (cut.dot(grad, value, transposed=True) - means)
        return total + cut.dot(towards.astype(key.dtype), key)

    total = go_through(ends, meet, jnp.zeros(query.shape, jnp.float32))
    cut.store(towards_query, here, total * scale)


def _key_kernel(
    block: Array, ends: Any, query_places: Any, key_places: Any, queries: Any, keys: Any,
    values: Any, grads: Any, logsum: Any, mean: Any, towards_key: Any, towards_value: Any,
    *, cut: Cut, scale: float,
) -> None:  # fmt: skip
    here = cut.keys(block)
    key, value = cut.load(keys, here), cut.load(values, here)
    mine = _column(_places(key_places, here))

    def of_head(head: Array, totals: Any) -> Any:
        def meet(apart: bool, block: Array, totals: Any) -> Any:
            # Keys are the rows here: weights need no transpose between the products.
            there = cut.queries(block, every=not apart)
            query, grad = (cut.load(ref, there, head) for ref in (queries, grads))
            scores = cut.dot(key, query, transposed=True) * (scale * LOG2E)
            if apart:
                scores = _hide(scores, _row(_places(query_places, there)), mine)
            sums, means = (cut.load(ref, there, head)[None, :] for ref in (logsum, mean))
            weights = jnp.exp2(scores - sums * LOG2E)
            towards = weights * (cut.dot(value, grad, transposed=True) - means)
            key_total, value_total = totals
            value_total += cut.dot(weights.astype(grad.dtype), grad)
            return key_total + cut.dot(towards.astype(query.dtype), query), value_total

        return go_through(ends, meet, totals)

    nothing = jnp.zeros(key.shape, jnp.float32)
    totals = jax.lax.fori_loop(0, cut.heads // cut.groups, of_head, (nothing, nothing))
    cut.store(towards_key, here, totals[0] * scale)
    cut.store(towards_value, here, totals[1])
