"""Sinusoidal embeddings of positions and recursions (Vaswani et al. 2017, arXiv 1706.03762)."""

import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Wave = Literal["none", "interleaved", "halves"]


def sinusoids(index: Int[Array, "*B"], embed_dim: int, layout: Wave) -> Float[Array, "*B D"]:
    """Returns sines and cosines, of wavelengths from 2 pi to 20,000 pi, in float32.

    Args:
      index: of positions or recursions.
      embed_dim: numbers of each; the last of an odd width is 0.
      layout: "interleaved" alternates sines and cosines (the paper), "halves" has sines in the
        first half and cosines in the second (the released code).
    """
    half = embed_dim // 2
    # In the released code the last wavelength is exactly 20,000 pi, in the paper it is shorter.
    last = half if layout == "interleaved" else max(half - 1, 1)
    rates = jnp.exp(-math.log(10_000) / last * jnp.arange(half, dtype=jnp.float32))
    angle = index[..., None].astype(jnp.float32) * rates
    pair = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1 if layout == "interleaved" else -2)
    flat = pair.reshape(*index.shape, 2 * half)
    return jnp.pad(flat, [(0, 0)] * index.ndim + [(0, embed_dim % 2)])
