"""Attention of some tokens to some keys and values, by where the tokens stand."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from recursia.kernels.routed_attention import routed_attention
from recursia.params import Leaf
from recursia.sharding import is_split, locally

PADDING = 0  # segment of what is no token


@struct.dataclass
class Context:
    """What a step may know of its tokens besides their hidden states.

    Attributes:
      positions: in the document, whatever subset of its tokens is here.
      segment_ids: tokens see only their own segment, a number from 1; 0 is padding. None is one
        segment for all.
      is_live: False for padding, and for tokens whose step is computed and thrown away: they take
        no place and no part in what a block reports. None: all are.
      inputs: the states that the core was entered with, where a recursion reads them.
      is_row: whether these are the tokens of whole rows, at positions 0, 1, 2, ...
      window: how many positions behind itself a token sees, its own included; 0 is no bound.
    """

    positions: Leaf  # [B T]
    segment_ids: Leaf | None = None  # [B T]
    is_live: Leaf | None = None  # [B T]
    inputs: Leaf | None = None  # [B T D]
    is_row: bool = struct.field(pytree_node=False, default=False)
    window: int = struct.field(pytree_node=False, default=0)

    def take(self, index: Int[Array, "B C"]) -> "Context":
        """Returns the context of a subset of the tokens."""
        rows = jnp.arange(index.shape[0])[:, None]
        return jax.tree.map(lambda leaf: leaf[rows, index], replace(self, is_row=False))

    def count_only(self, live: Bool[Array, "B T"]) -> "Context":
        """Returns a context in which the other tokens' steps are thrown away, yet seen by all."""
        return replace(self, is_live=live if self.is_live is None else live & self.is_live)

    def hide(self, hidden: Bool[Array, "B T"]) -> "Context":
        """Returns a context in which the hidden tokens are padding: no other token sees them."""
        segments = 1 if self.segment_ids is None else self.segment_ids
        counted = self.count_only(~hidden)
        return replace(counted, segment_ids=jnp.where(hidden, PADDING, segments))


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
    scale: float | None = None,
    cap: float = 0.0,
) -> Float[Array, "B T N H"]:
    """Causal grouped-query attention: a query sees keys of its segment not later than itself.

    Heads are split over devices where those of keys are, and queries where tokens are: each device
    then reads the keys of all tokens.

    Args:
      query: rotated queries of the tokens in `context`.
      source: rotated keys and values of the tokens in `source_context`.
      context: where the queries stand.
      source_context: where the keys stand; they need not be the tokens of the queries.
      relative: what each query adds to the scores of keys 0, 1, ... positions behind it; those
        further behind take the last.
      scale: of the scores; None: 1 / sqrt(H).
      cap: bound of the scores, by the hyperbolic tangent; 0 has none.
    """
    positions = [context.positions, source_context.positions]
    if context.is_row and source_context.is_row and not is_split("length"):
        positions = [None, None]
    segments = [context.segment_ids, source_context.segment_ids]
    if segments[0] is None or segments[1] is None:  # one for all is segment 1, as in `hide`
        written = lambda given, at: jnp.ones_like(at.positions) if given is None else given
        is_one = segments[0] is segments[1]
        pairs = zip(segments, (context, source_context), strict=True)
        segments = [None, None] if is_one else [written(*pair) for pair in pairs]

    def run(query, key, value, relative, *where: Array | None) -> Array:
        names = ("query_positions", "key_positions", "query_segments", "key_segments")
        how: dict[str, Any] = dict(zip(names, where, strict=True))
        how |= {"scale": scale, "cap": cap, "window": context.window}
        return routed_attention(query, key, value, relative=relative, **how)

    queries, keys = ("batch", "length", "kv_heads", None), ("batch", None, "kv_heads", None)
    return locally(
        run,
        (query, source.key, source.value, relative, *positions, *segments),
        (queries, keys, keys, queries, *(queries[:2], keys[:2]) * 2),
        queries,
    )
