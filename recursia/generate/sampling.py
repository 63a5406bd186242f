"""Sampling of the next token: temperature, top-k, top-p (nucleus) and min-p."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recursia import ranges


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the model's distribution.

    The filters are applied one after the other, in the order of the fields, to the distribution at
    the temperature; what they leave is drawn from.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: keeps so many of the likeliest tokens; 0 keeps all.
      top_p: keeps the likeliest tokens whose probabilities add up to this much, the one that
        reaches it included (Holtzman et al. 2020, arXiv 1904.09751); 1 keeps all.
      min_p: keeps tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024,
        arXiv 2407.01082); 0 keeps all.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        ranges.at_least(0, self, "temperature", "top_k", "min_p")
        ranges.between(0, 1, self, "min_p")
        ranges.above(0, self, "top_p")
        ranges.between(0, 1, self, "top_p")

    def draw(self, logits: Float[Array, "B V"], keys: Array) -> Int[Array, "B"]:
        """Returns a token for each row.

        Args:
          logits: of the next token.
          keys: one for each row.
        """
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        kept = self.filtered(logits.astype(jnp.float32) / self.temperature)
        return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)

    def filtered(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Returns logits at the temperature, with -inf for tokens that are not drawn."""
        if self.top_k and self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p < 1:
            ordered = jnp.sort(logits, axis=-1, descending=True)
            p = jax.nn.softmax(ordered, axis=-1)
            is_kept = jnp.cumsum(p, axis=-1) - p < self.top_p  # before it, not enough
            least = jnp.min(jnp.where(is_kept, ordered, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.min_p > 0:
            least = logits.max(axis=-1, keepdims=True) + jnp.log(self.min_p)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return logits
