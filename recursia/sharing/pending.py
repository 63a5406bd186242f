"""Tokens that stopped early while decoding, and whose later keys no one has asked for yet.

Under some depth policies a stopped token goes on being computed, for those that attend to it. While
decoding that work waits: the token's carry is kept, and a recursion that a later token needs first
takes the tokens that have not taken it, several at once.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from recursia.layers.attention import PADDING, Context
from recursia.params import Leaf

AT_ONCE = 8  # tokens of a row that catch up together


@struct.dataclass
class Pending:
    """Every token of a batch of texts, in the order in which they came; padding has no place.

    Attributes:
      carry: what the policy carries from one recursion to the next; what is no leaf [B S ...] is
        the same for all tokens that take a recursion.
      context: where the tokens stand.
      depth: recursions that a token has taken.
      used: places that are taken.
    """

    carry: Any  # [B S ...]
    context: Context  # [B S]
    depth: Leaf  # [B S]
    used: Leaf  # [B]

    def waits(self, number: int) -> Bool[Array, "B S"]:
        """Returns which tokens have yet to take a recursion, and have taken all before."""
        is_token = jnp.arange(self.depth.shape[1]) < self.used[:, None]
        return is_token & (self.depth == number)

    def first(self, number: int) -> tuple[Int[Array, "B W"], Bool[Array, "B W"]]:
        """Returns the places of the first tokens that wait for a recursion, and which are some."""
        waits = self.waits(number)
        places = jnp.arange(waits.shape[1])
        width = min(AT_ONCE, waits.shape[1])
        order = jnp.sort(jnp.where(waits, places, waits.shape[1]), axis=1)[:, :width]
        return order, order < waits.shape[1]

    def take(self, index: Int[Array, "B W"], carry: Any) -> tuple[Any, Context]:
        """Returns carry and context of some tokens; what all tokens share is that of `carry`."""
        rows = jnp.arange(len(index))[:, None]
        pick = lambda kept, new: kept[rows, index] if is_by_token(new, self.depth.shape[0]) else new
        return jax.tree.map(pick, self.carry, carry), self.context.take(index)

    def add(self, carry: Any, context: Context, depth: Any) -> "Pending":
        """Returns the same with further tokens, all of which have taken as many recursions."""
        is_token = context.segment_ids != PADDING
        index = self.used[:, None] + jnp.cumsum(is_token, 1) - 1
        index = jnp.where(is_token, index, self.depth.shape[1])
        return self.put(index, carry, context, depth, is_token.sum(1))

    def put(
        self, index: Int[Array, "B W"], carry: Any, context: Context, depth: Any, count: Any
    ) -> "Pending":
        """Returns the same with tokens written at some places; those beyond the last are dropped.

        Args:
          index: the places.
          carry: of those tokens.
          context: of those tokens.
          depth: recursions that they have taken.
          count: how many of them are new, by row.
        """
        rows = jnp.arange(len(index))[:, None]

        def put(kept: Array, new: Any) -> Array:
            if jnp.shape(new)[:2] != index.shape:
                new = jnp.broadcast_to(new, index.shape)
            return kept.at[rows, index].set(new.astype(kept.dtype), mode="drop")

        each = lambda kept, new: put(kept, new) if is_by_token(new, len(index)) else kept
        return Pending(
            jax.tree.map(each, self.carry, carry),
            jax.tree.map(each, self.context, context),
            put(self.depth, jnp.asarray(depth)),
            self.used + count,
        )


def is_by_token(leaf: Any, batch: int) -> bool:
    """Returns whether a leaf of a carry has an entry for each token [B T ...]."""
    return leaf.ndim >= 2 and leaf.shape[0] == batch


def empty(carry: Any, context: Context, size: int) -> Pending:
    """Returns room for the tokens of a batch of texts.

    Args:
      carry: of some tokens, for its shapes.
      context: of them, with segments.
      size: tokens of the longest text.
    """
    batch = len(context.positions)

    def room(leaf: Any) -> Array:
        if not is_by_token(leaf, batch):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.zeros((batch, size, *leaf.shape[2:]), leaf.dtype)

    carry, context = jax.tree.map(room, (carry, context))
    depth = jnp.zeros((batch, size), jnp.int32)
    return Pending(carry, context, depth, jnp.zeros(batch, jnp.int32))
