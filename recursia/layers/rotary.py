"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864)."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recursia.layers.stretch import NONE, Stretch

Layout = Literal["halves", "interleaved"]


def rotate(
    x: Float[Array, "B T N H"],
    positions: Int[Array, "B T"],
    base: float,
    layout: Layout = "halves",
    fraction: float = 1.0,
    stretch: Stretch = NONE,
) -> Float[Array, "B T N H"]:
    """Rotates pairs of each head's numbers by angles that grow with the token's position.

    Args:
      x: queries or keys.
      positions: of the tokens in their documents; a subset of tokens keeps its positions.
      base: the longest wavelength, in tokens, over 2 pi.
      layout: a pair is one number of the first half of the head and one of the second, or two
        neighbours ("interleaved").
      fraction: of a head's width that is rotated, from its start, rounded down to an even width.
      stretch: factors of the wavelengths, for documents longer than those of training.
    """
    width = int(fraction * x.shape[-1]) // 2 * 2
    if width < x.shape[-1]:
        head, rest = jnp.split(x, [width], axis=-1)
        head = rotate(head, positions, base, layout, stretch=stretch)
        return jnp.concatenate([head, rest], axis=-1)
    half = x.shape[-1] // 2
    # Angles in float32 whatever x is: bfloat16 holds no integer above 256 exactly.
    waves = base ** (jnp.arange(half, dtype=jnp.float32) / half)
    waves = waves if stretch == NONE else stretch.of(waves)
    angle = positions[..., None, None].astype(jnp.float32) / waves
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    shape, axis = ((2, half), -2) if layout == "halves" else ((half, 2), -1)
    pairs = x.reshape(*x.shape[:-1], *shape).astype(jnp.float32)
    a, b = jnp.moveaxis(pairs, axis, 0)
    rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis)
    return rotated.reshape(x.shape).astype(x.dtype)
