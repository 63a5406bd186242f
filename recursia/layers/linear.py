"""Multiplication by a weight of the model."""

import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from flax import struct
from jax import Array

from recursia.params import Leaf
from recursia.sharding import is_split


@runtime_checkable
class Weight(Protocol):
    """What stands in an array's place; it has `full()` too where one array does the same."""

    def dot(self, x: Array, einsum: str) -> Array:
        """Returns `einsum` of activations and itself, as the function `dot` does of an array."""
        ...


@struct.dataclass
class Relaxed:
    """A weight with a product of two thin ones added: `base + scale a b`, never made in full.

    Attributes:
      base: the features taken, then those given.
      a: the features taken, then the rank.
      b: the rank, then the features given.
      scale: of the product.
    """

    base: Leaf
    a: Leaf
    b: Leaf
    scale: float = struct.field(pytree_node=False)

    def dot(self, x: Array, einsum: str) -> Array:
        """Returns the product with the base, and that with the thin ones, in turn."""
        taken, rest = einsum.split(",")
        given = rest.split("->")[1]
        thin = self.scale * dot(x, self.a, f"{taken},{taken}z->z")
        return dot(x, self.base, einsum) + dot(thin, self.b, f"z,z{given}->{given}")

    def full(self) -> Array:
        """Returns the one array that multiplies as this does."""
        return self.base + self.scale * jnp.tensordot(self.a, self.b, 1)


def dot(x: Array, weight: Array | Weight, einsum: str) -> Array:
    """Returns `einsum` of each token's activations and a weight.

    Every multiplication by a model weight goes through here, so that what a weight is (an array,
    an array with an adapter, a mixture) can be told apart without any block knowing. Tokens and
    features are flattened to one axis each: a compiler can then fold the transposes of the backward
    pass into its products instead of copying. Tokens split over devices are not: rows of several
    sequences would have to come together for it.

    Args:
      x: activations, in the compute dtype: any axes of tokens, then the features named.
      weight: a weight in the compute dtype: the features taken, then those given, or the other way
        for an array.
      einsum: the features alone, such as "d,dnh->nh".
    """
    if not isinstance(weight, Array):
        return weight.dot(x, einsum)
    taken, rest = einsum.split(",")
    axes, given = rest.split("->")
    tokens, features = x.shape[: x.ndim - len(taken)], x.shape[x.ndim - len(taken) :]
    rows = x.reshape(*(tokens if is_split("length") else (-1,)), math.prod(features))
    if axes == taken + given:
        y = rows @ weight.reshape(rows.shape[-1], -1)
        shape = weight.shape[len(taken) :]
    elif axes == given + taken:
        y = jnp.einsum("...i,oi->...o", rows, weight.reshape(-1, rows.shape[-1]))
        shape = weight.shape[: len(given)]
    else:
        raise ValueError(f"dot: {einsum!r} does not take and give features side by side.")
    return y.reshape(*tokens, *shape)
