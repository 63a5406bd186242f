"""How many tokens of a row each recursion keeps, and which: padding takes no place.

A share is the fraction of all tokens that a recursion keeps. A row falls into equal parts, each of
which keeps its share of its own tokens.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Shares = tuple[float, ...]  # of each recursion


def counts(shares: Shares, parts: int, seq_len: int) -> tuple[int, ...]:
    """Returns how many tokens of a whole row each recursion keeps; at least one of each part."""
    return tuple(parts * _places(share, seq_len // parts) for share in shares)


def limits(shares: Shares, parts: int, is_live: Bool[Array, "B T"]) -> Int[Array, "R B P"]:
    """Returns how many tokens each recursion keeps of each part of rows with padding.

    Args:
      shares: of each recursion.
      parts: of a row.
      is_live: the tokens that are not padding.
    """
    each, lengths = is_live.shape[1] // parts, _lengths(parts, is_live)
    table = [[_places(share, length) for length in range(each + 1)] for share in shares]
    return jnp.array(table)[:, lengths]


def warming(
    shares: Shares, parts: int, num_steps: int, is_live: Bool[Array, "B T"], step: Int[Array, ""]
) -> Int[Array, "R B P"]:
    """Returns the same at a step of a warm-up, in which shares fall from 1 along half a cosine.

    Args:
      shares: of each recursion after the warm-up.
      parts: of a row.
      num_steps: of the warm-up.
      is_live: the tokens that are not padding.
      step: of training, from 0.
    """
    falls = 0.5 * (1 + np.cos(math.pi * np.arange(1, num_steps + 1) / num_steps))
    falling = np.array([[share + (1 - share) * fall for share in shares] for fall in falls])
    each, lengths = is_live.shape[1] // parts, _lengths(parts, is_live)
    whole = np.array([[_places(share, each) for share in row] for row in falling])
    step = jnp.clip(step, 0, num_steps - 1)
    share, whole = (jnp.array(of)[step][:, None, None] for of in (falling, whole))
    # A table by length too would be large; of rows with padding, the product is in float32.
    kept = (share * lengths.astype(share.dtype)).astype(jnp.int32)
    part = jnp.minimum(jnp.maximum(kept, 1), lengths)
    return jnp.where(lengths == each, whole, part)


def is_best(scores: Float[Array, "B C"], limit: Int[Array, "B P"]) -> Bool[Array, "B C"]:
    """Returns whether a token is among the best `limit` of its part; ties go to the earlier."""
    parts = scores.reshape(*limit.shape, -1)
    rank = jnp.argsort(jnp.argsort(-parts, stable=True), stable=True)
    return (rank < limit[..., None]).reshape(scores.shape)


def _places(share: float, length: int) -> int:
    return max(1, int(share * length)) if length else 0


def _lengths(parts: int, is_live: Bool[Array, "B T"]) -> Int[Array, "B P"]:
    """Returns how many tokens that are not padding each part of a row has."""
    return is_live.reshape(len(is_live), parts, -1).sum(-1)
