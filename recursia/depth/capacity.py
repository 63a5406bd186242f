"""Capacity of recursions: how many tokens of a row each keeps, padding not counted.

A share is the fraction of all tokens that a recursion keeps. A row is split into equal parts, and a
recursion keeps its share of the tokens of each part.
"""

import itertools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Shares = tuple[float, ...]  # of each recursion


def linear(num_recursions: int) -> Shares:
    """Returns the published shares: (R - r) / R for r = 0 .. R-1."""
    return tuple((num_recursions - r) / num_recursions for r in range(num_recursions))


def check(shares: Shares, num_recursions: int) -> None:
    """Refuses shares that no recursions can keep.

    Raises:
      ValueError: with the shares, or their number.
    """
    if len(shares) != num_recursions:
        raise ValueError(
            f"capacity: got {len(shares)} numbers for num_recursions {num_recursions}; give one "
            "for each recursion, or None"
        )
    is_growing = any(a < b for a, b in itertools.pairwise(shares))
    if is_growing or not all(0 < share <= 1 for share in shares):
        raise ValueError(
            f"capacity: got {shares}, takes fractions of all tokens in (0, 1] that never grow: a "
            "recursion keeps some of the tokens that the one before kept"
        )


def counts(shares: Shares, parts: int, seq_len: int) -> tuple[int, ...]:
    """Returns how many tokens of a row without padding each recursion keeps, 1 a part or more."""
    return tuple(parts * _count(share, seq_len // parts) for share in shares)


def limits(shares: Shares, parts: int, is_live: Bool[Array, "B T"]) -> Int[Array, "R B P"]:
    """Returns how many tokens each recursion keeps of each part of rows with padding.

    Args:
      shares: of each recursion.
      parts: number of parts of a row.
      is_live: the tokens that are not padding.
    """
    longest, lengths = is_live.shape[1] // parts, _lengths(parts, is_live)
    table = [[_count(share, length) for length in range(longest + 1)] for share in shares]
    return jnp.array(table)[:, lengths]


def warmup_limits(
    shares: Shares, parts: int, num_steps: int, is_live: Bool[Array, "B T"], step: Int[Array, ""]
) -> Int[Array, "R B P"]:
    """Returns `limits` at a warm-up step, in which shares fall from 1 along half a cosine.

    Args:
      shares: of each recursion after the warm-up.
      parts: number of parts of a row.
      num_steps: steps of the warm-up.
      is_live: the tokens that are not padding.
      step: training step, from 0.
    """
    falls = 0.5 * (1 + np.cos(math.pi * np.arange(1, num_steps + 1) / num_steps))
    share_table = np.array([[share + (1 - share) * fall for share in shares] for fall in falls])
    longest, lengths = is_live.shape[1] // parts, _lengths(parts, is_live)
    count_table = np.array([[_count(share, longest) for share in row] for row in share_table])
    step = jnp.clip(step, 0, num_steps - 1)
    share, count = (jnp.array(table)[step][:, None, None] for table in (share_table, count_table))
    # A table by length too would be large: with padding, the product is computed in float32.
    kept = (share * lengths.astype(share.dtype)).astype(jnp.int32)
    padded = jnp.minimum(jnp.maximum(kept, 1), lengths)
    return jnp.where(lengths == longest, count, padded)


def is_best(scores: Float[Array, "B C"], limit: Int[Array, "B P"]) -> Bool[Array, "B C"]:
    """Returns whether a token is among the top `limit` of its part; ties go to the earlier."""
    parts = scores.reshape(*limit.shape, -1)
    rank = jnp.argsort(jnp.argsort(-parts, stable=True), stable=True)
    return (rank < limit[..., None]).reshape(scores.shape)


def _count(share: float, length: int) -> int:
    return max(1, int(share * length)) if length else 0


def _lengths(parts: int, is_live: Bool[Array, "B T"]) -> Int[Array, "B P"]:
    """Returns how many tokens of each part are not padding."""
    return is_live.reshape(len(is_live), parts, -1).sum(-1)
