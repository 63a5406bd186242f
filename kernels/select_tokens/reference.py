"""Defines the order of scores, and the two ways to select tokens by it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def ordered(scores: Float[Array, "*S"]) -> Int[Array, "*S"]:
    """Returns 32-bit integers in the order of scores of at most 32 bits.

    Zeros of both signs are equal; NaN of either sign is above infinity. No score becomes the least
    integer, which can therefore mark an absent score.
    """
    scores = scores.astype(jnp.float32)
    scores = jnp.where(scores == 0, 0.0, scores)
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    # Below zero a larger magnitude is a smaller number: flip all but the sign.
    image = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return jnp.where(scores != scores, 0x7FFFFFFF, image)


def select(scores: Float[Array, "B T"], *, k: int) -> Int[Array, "B k"]:
    """Returns the places of the top-k scores, ascending; of equal scores the earlier is taken."""
    scores = jnp.where(scores == 0, 0.0, scores)
    scores = jnp.where(scores != scores, jnp.nan, scores)
    return jnp.sort(jax.lax.top_k(scores, k)[1], axis=-1).astype(jnp.int32)


def above(
    scores: Float[Array, "B T"], threshold: Float[Array, "*B"]
) -> tuple[Bool[Array, "B T"], Int[Array, "B"]]:
    """Returns which scores reach the threshold, and their number in each row."""
    reach = scores >= (threshold[:, None] if threshold.ndim else threshold)
    return reach, jnp.sum(reach, axis=-1, dtype=jnp.int32)
