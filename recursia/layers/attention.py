"""Attention of some tokens to some keys and values, by where the tokens stand."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from recursia.params import Leaf


@struct.dataclass
class Context:
    """What a step may know of its tokens besides their hidden states.

    Attributes:
      positions: in the document, whatever subset of its tokens is here.
      segment_ids: tokens see only their own segment.
      is_live: whether a token's step is more than a filler whose result is thrown away: what a
        block reports of its tokens leaves the others out. None: all are.
      inputs: the states that the core was entered with, where a recursion reads them.
    """

    positions: Leaf  # [B T]
    segment_ids: Leaf  # [B T]
    is_live: Leaf | None = None  # [B T]
    inputs: Leaf | None = None  # [B T D]

    def take(self, index: Int[Array, "B C"]) -> "Context":
        """Returns the context of a subset of the tokens."""
        rows = jnp.arange(index.shape[0])[:, None]
        return jax.tree.map(lambda leaf: leaf[rows, index], self)

    def count_only(self, live: Bool[Array, "B T"]) -> "Context":
        """Returns a context whose other tokens are fillers, still seen by all."""
        return self.replace(is_live=live if self.is_live is None else live & self.is_live)

    def hide(self, hidden: Bool[Array, "B T"]) -> "Context":
        """Returns a context in which no other token sees the hidden ones: they are fillers."""
        segments = jnp.where(hidden, -1, self.segment_ids)
        return self.count_only(~hidden).replace(segment_ids=segments)


@struct.dataclass
class KeysValues:
    """The keys and values that a step offers, one for each token of its context."""

    key: Leaf  # [... B S K H]
    value: Leaf  # [... B S K H]


def attend(
    query: Float[Array, "B T N H"],
    source: KeysValues,
    context: Context,
    source_context: Context,
    relative: Float[Array, "B T N R"] | None = None,
) -> Float[Array, "B T N H"]:
    """Causal grouped-query attention: a query sees keys of its segment not later than itself.

    Probabilities are never kept: the backward pass computes them again from queries and keys.

    Args:
      query: rotated queries of the tokens in `context`.
      source: rotated keys and values of the tokens in `source_context`.
      context: where the queries stand.
      source_context: where the keys stand; they need not be the tokens of the queries.
      relative: what each query adds to the scores of keys 0, 1, ... positions behind it; those
        further behind take the last.
    """
    batch, length, heads, width = query.shape
    groups = source.key.shape[-2]
    # [B K G T H]: the query heads that read one key head side by side.
    split = lambda x: x.reshape(batch, length, groups, heads // groups, -1).transpose(0, 2, 3, 1, 4)
    key, value = (x.swapaxes(1, 2) for x in (source.key, source.value))
    further = None if relative is None else split(relative)
    contexts = context, source_context
    mixed = _attend(split(query) / math.sqrt(width), key, value, further, contexts)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(query.shape)


@jax.custom_vjp
def _attend(
    query: Array,
    key: Array,
    value: Array,
    relative: Array | None,
    contexts: tuple[Context, Context],
) -> Array:
    """Attention of scaled queries [B K G T H] to keys and values [B K S H]."""

    def one(query: Array, key: Array, value: Array, relative: Array | None, where: Any) -> Array:
        weights = _weights(query, key, relative, where)
        return jnp.einsum("gts,sh->gth", weights.astype(value.dtype), value)

    return _over_heads(one, (query, key, value, relative), contexts)


def _forward(*inputs: Any) -> tuple[Array, Any]:
    return _attend(*inputs), inputs


def _backward(saved: Any, grad: Array) -> tuple[Array, Array, Array, Array | None, None]:
    *arrays, contexts = saved

    def one(query: Array, key: Array, value: Array, relative: Any, grad: Array, where: Any):
        weights = _weights(query, key, relative, where)
        towards = jnp.einsum("gth,sh->gts", grad, value, preferred_element_type=jnp.float32)
        towards = weights * (towards - (weights * towards).sum(-1, keepdims=True))
        further = None if relative is None else _towards_relative(towards, relative, where)
        weights, towards = weights.astype(value.dtype), towards.astype(query.dtype)
        rows = lambda x: x.reshape(-1, x.shape[-1])
        return (
            jnp.einsum("gts,sh->gth", towards, key),
            rows(towards).T @ rows(query),
            rows(weights).T @ rows(grad),
            further,
        )

    return *_over_heads(one, (*arrays, grad), contexts), None


_attend.defvjp(_forward, _backward)


def _weights(
    query: Float[Array, "G T H"],
    key: Float[Array, "S H"],
    relative: Float[Array, "G T R"] | None,
    where: tuple[Bool[Array, "T S"], Int[Array, "T S"]],
) -> Float[Array, "G T S"]:
    """Returns attention probabilities, in float32; a query that sees nothing spreads evenly."""
    mask, behind = where
    scores = jnp.einsum("gth,sh->gts", query, key, preferred_element_type=jnp.float32)
    if relative is not None:
        behind = jnp.clip(behind, 0, relative.shape[-1] - 1)
        scores += jnp.take_along_axis(relative, behind[None], axis=-1)
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min))


def _towards_relative(
    towards: Float[Array, "G T S"], relative: Float[Array, "G T R"], where: Any
) -> Float[Array, "G T R"]:
    """Returns the gradient of the relative scores from that of all scores."""
    behind = jnp.clip(where[1], 0, relative.shape[-1] - 1)
    rows = jnp.arange(len(behind))[:, None]
    return jnp.zeros(relative.shape).at[:, rows, behind].add(towards).astype(relative.dtype)


def _where(
    context: Context, source_context: Context
) -> tuple[Bool[Array, "T S"], Int[Array, "T S"]]:
    """Returns which keys each query sees, and how far behind it they stand."""
    behind = context.positions[:, None] - source_context.positions[None, :]
    same = source_context.segment_ids[None, :] == context.segment_ids[:, None]
    return (behind >= 0) & same, behind


def _over_heads(one: Callable, arrays: tuple[Any, ...], contexts: tuple[Context, Context]) -> Any:
    """Applies `one(*arrays, where)` to every row and key head of arrays [B K ...].

    All at once; on a CPU one by one, since the scores of one head stay in its cache.
    """

    def walk(each: Callable) -> Callable:
        def row(entry: Any) -> Any:
            arrays, contexts = entry
            where = _where(*contexts)
            return each(lambda arrays: one(*arrays, where), arrays)

        return lambda arrays, contexts: each(row, (arrays, contexts))

    one_by_one = walk(lambda f, xs: jax.lax.map(f, xs))
    at_once = walk(lambda f, xs: jax.vmap(f)(xs))
    return jax.lax.platform_dependent(arrays, contexts, cpu=one_by_one, default=at_once)
