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
    """Rotates each head by its token's position, numbers in pairs.

    Args:
      x: queries or keys.
      positions: of the tokens in their document; any subset of a document keeps its own.
      base: the longest wavelength, in tokens, over 2 pi.
      layout: a pair is one number of the first half of the head and one of the second, or two
        neighbours ("interleaved").
      fraction: of a head, how much is rotated: its first numbers, rounded down to an even width.
      stretch: of the wavelengths, for documents longer than those of training.
    """
    width = int(fraction * x.shape[-1]) // 2 * 2
    if width < x.shape[-1]:
        turned, rest = jnp.split(x, [width], axis=-1)
        return jnp.concatenate(
            [rotate(turned, positions, base, layout, stretch=stretch), rest], axis=-1
        )
    half = x.shape[-1] // 2
    # Angles in float32 whatever x is: bfloat16 holds no integer above 256 exactly.
    waves = base ** (jnp.arange(half, dtype=jnp.float32) / half)
    waves = waves if stretch == NONE else stretch.of(waves)
    angle = positions[..., None, None].astype(jnp.float32) / waves
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    shape, axis = ((2, half), -2) if layout == "halves" else ((half, 2), -1)
    pairs = x.reshape(*x.shape[:-1], *shape).astype(jnp.float32)
    a, b = jnp.moveaxis(pairs, axis, 0)
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis)
    return turned.reshape(x.shape).astype(x.dtype)
