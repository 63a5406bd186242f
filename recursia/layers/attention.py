"""Attention of some tokens to some keys and values, by where the tokens stand."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Context:
    """What a step may know of its tokens besides their hidden states."""

    positions: Int[Array, "B T"]  # in the document, whatever subset of its tokens is here
    segment_ids: Int[Array, "B T"]  # tokens see only their own segment

    def take(self, index: Int[Array, "B C"]) -> "Context":
        """Returns the context of a subset of the tokens."""
        return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, index, axis=1), self)

    def hide(self, hidden: Bool[Array, "B T"]) -> "Context":
        """Returns a context in which no other token sees the hidden ones."""
        return self.replace(segment_ids=jnp.where(hidden, -1, self.segment_ids))


@struct.dataclass
class KeysValues:
    """The keys and values that a step offers, one for each token of its context."""

    key: Float[Array, "*L B S K H"]
    value: Float[Array, "*L B S K H"]


def attend(
    query: Float[Array, "B T N H"], source: KeysValues, context: Context, source_context: Context
) -> Float[Array, "B T N H"]:
    """Causal grouped-query attention: a query sees keys of its segment not later than itself.

    Args:
      query: rotated queries of the tokens in `context`.
      source: rotated keys and values of the tokens in `source_context`.
      context: where the queries stand.
      source_context: where the keys stand; they need not be the tokens of the queries.
    """
    not_later = source_context.positions[:, None, :] <= context.positions[:, :, None]
    together = source_context.segment_ids[:, None, :] == context.segment_ids[:, :, None]
    mask = (not_later & together)[:, None]  # [B 1 T S]
    return jax.nn.dot_product_attention(query, source.key, source.value, mask=mask)
