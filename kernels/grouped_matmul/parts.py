"""Float32 products on tensor cores that multiply bfloat16.

A float32 is the sum of three bfloat16. Of the nine products of parts, the six that float32 can tell
from zero are summed, the smallest first: with its error, at a sixth of the rate of bfloat16.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..hopper import LANES
from .sizes import common


def in_parts(make: Callable[..., Array], x: Array, y: Array, dtype: jnp.dtype) -> Array:
    """Returns a product of bfloat16, or the sum of those of the parts of float32."""
    if common(x, y) == jnp.bfloat16:
        return make(_even(x), _even(y), dtype)
    xs, ys = _parts(_even(x)), _parts(_even(y))
    small = [(i, j) for i in range(len(xs)) for j in range(len(ys)) if i + j < 3]
    small.sort(key=sum, reverse=True)
    return functools.reduce(jnp.add, (make(xs[i], ys[j], jnp.float32) for i, j in small))


def _parts(x: Array) -> list[Array]:
    """Returns bfloat16 arrays whose sum is `x`, the largest first."""
    found = []
    for _ in range(1 if x.dtype == jnp.bfloat16 else 3):
        # Not a cast there and back, which a compiler may leave out.
        found.append(jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7))
        x = x - found[-1]
    return [part.astype(jnp.bfloat16) for part in found]


def _even(x: Array) -> Array:
    """Returns rows, or a bank of them, padded by zeros to whole parts of tiles."""
    whole = (8, LANES) if x.ndim == 2 else (1, LANES, LANES)
    fill = [(0, -size % part) for size, part in zip(x.shape, whole, strict=True)]
    return jnp.pad(x, fill)
