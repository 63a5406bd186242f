"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], base: float
) -> Float[Array, "B T N H"]:
    """Rotates each head by its token's position, first half of the head against the second.

    Args:
      x: queries or keys.
      positions: of the tokens in their document; any subset of a document keeps its own.
      base: the longest wavelength, in tokens, over 2 pi.
    """
    half = x.shape[-1] // 2
    # Angles in float32 whatever x is: bfloat16 holds no integer above 256 exactly.
    waves = base ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) / waves
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
