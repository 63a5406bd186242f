"""Multiplication by a weight of the model."""

import math

import jax.numpy as jnp
from jax import Array


def dot(x: Array, weight: Array, einsum: str) -> Array:
    """Returns `einsum` of each token's activations and a weight.

    Every multiplication by a model weight goes through here, so that what a weight is (an array,
    an array with an adapter, a mixture) can be told apart without any block knowing. Tokens and
    features are flattened to one axis each: a compiler can then fold the transposes of the backward
    pass into its products instead of copying.

    Args:
      x: activations, in the compute dtype: any axes of tokens, then the features named.
      weight: a weight in the compute dtype: the features taken, then those given, or the other way.
      einsum: the features alone, such as "d,dnh->nh".
    """
    taken, rest = einsum.split(",")
    axes, given = rest.split("->")
    tokens, features = x.shape[: x.ndim - len(taken)], x.shape[x.ndim - len(taken) :]
    rows = x.reshape(-1, math.prod(features))
    if axes == taken + given:
        y = rows @ weight.reshape(rows.shape[-1], -1)
        shape = weight.shape[len(taken) :]
    elif axes == given + taken:
        y = jnp.einsum("zi,oi->zo", rows, weight.reshape(-1, rows.shape[-1]))
        shape = weight.shape[: len(given)]
    else:
        raise ValueError(f"dot: {einsum!r} does not take and give features side by side.")
    return y.reshape(*tokens, *shape)
