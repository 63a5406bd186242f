"""KV cache of one step: the keys and values of the tokens it has seen, packed row by row."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from recursia.layers.attention import PADDING, Context, KeysValues, QueriesKeys
from recursia.params import Leaf


@struct.dataclass
class Past:
    """Keys and values that one step of the model has made, for the decoding of later tokens.

    Only tokens that other tokens may see take a place: padding does not, nor does a token that its
    router left out. Places are filled in the order in which tokens come, so that a routed step
    needs fewer of them than the text has tokens. A row is one document.

    Attributes:
      keys_values: with S places.
      positions: of the tokens in their text.
      used: places that are taken; more than S if tokens came for which there was no place.
      query: of the tokens added last, for steps that replay it; dropped at the end of the step.
    """

    keys_values: KeysValues  # [B S K H]
    positions: Leaf  # [B S]
    used: Leaf  # [B]
    query: Leaf | None = None  # [B T N H]

    @property
    def size(self) -> int:
        """The number of places in a row."""
        return self.positions.shape[1]

    @property
    def context(self) -> Context:
        """Where the tokens stand; empty places are padding."""
        is_taken = jnp.arange(self.size) < self.used[:, None]
        return Context(self.positions, jnp.where(is_taken, 1, PADDING))

    def append(self, made: KeysValues, context: Context) -> "Past":
        """Returns the cache with the keys and values of further tokens.

        A token that finds no place is counted in `used`, and lost: give the cache more places and
        take the step again.

        Args:
          made: of those tokens [B T K H].
          context: where they stand; padding and hidden tokens are left out.
        """
        batch, count = context.positions.shape
        segments = context.segment_ids
        is_seen = jnp.ones((batch, count), bool) if segments is None else segments != PADDING
        place = self.used[:, None] + jnp.cumsum(is_seen, 1) - 1
        place = jnp.where(is_seen, place, self.size)
        rows = jnp.arange(batch)[:, None]

        def put(buffer: Array, new: Array) -> Array:
            return buffer.at[rows, place].set(new.astype(buffer.dtype), mode="drop")

        return Past(
            jax.tree.map(put, self.keys_values, made),
            put(self.positions, context.positions),
            self.used + is_seen.sum(1, dtype=self.used.dtype),
        )

    def resized(self, size: int) -> "Past":
        """Returns the cache with another number of places, at least as many as are taken."""
        fit = lambda x: jnp.pad(
            x[:, :size], [(0, 0), (0, max(size - x.shape[1], 0)), *[(0, 0)] * (x.ndim - 2)]
        )
        return Past(jax.tree.map(fit, self.keys_values), fit(self.positions), self.used)


# What a step attends to, if not what it makes alone: keys and values of another step; or queries
# and keys of another, with the cache of its own values in decoding; or its own KV cache.
Source = tuple[KeysValues | QueriesKeys, Context | Past] | Past
Made = KeysValues | QueriesKeys | Past  # what a step makes for others to read, or its KV cache


def empty(example: KeysValues, batch: int, size: int) -> Past:
    """Returns a cache without a token.

    Args:
      example: shapes [... K H] and dtypes of keys and values.
      batch: rows.
      size: places in each.
    """
    zeros = lambda leaf: jnp.zeros((batch, size, *leaf.shape[-2:]), leaf.dtype)
    places = jnp.zeros((batch, size), jnp.int32)
    return Past(jax.tree.map(zeros, example), places, jnp.zeros(batch, jnp.int32))
