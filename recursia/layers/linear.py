"""Multiplication by a weight of the model."""

import jax.numpy as jnp
from jax import Array


def dot(x: Array, weight: Array, einsum: str) -> Array:
    """Returns `einsum` of activations and a weight.

    Every multiplication by a model weight goes through here, so that what a weight is (an array,
    an array with an adapter, a mixture) can be told apart without any block knowing.

    Args:
      x: activations, in the compute dtype.
      weight: a weight in the compute dtype.
      einsum: the contraction, activations first.
    """
    return jnp.einsum(einsum, x, weight)
