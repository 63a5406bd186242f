"""Products of activations with weights, plain or with a low-rank adapter."""

import functools
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from recursia.params import Leaf
from recursia.sharding import is_split


@runtime_checkable
class Weight(Protocol):
    """What can replace an array as a weight; it has `full()` too if one array is equivalent."""

    def dot(self, x: Array, einsum: str) -> Array:
        """Returns `einsum` of activations and this weight, as the function `dot` does."""
        ...


@struct.dataclass
class Relaxed:
    """A weight with a low-rank (LoRA) update, `base + scale a b`, multiplied without its sum.

    Attributes:
      base: input features, then output features.
      a: input features, then the rank.
      b: the rank, then output features.
      scale: factor of `a b`.
    """

    base: Leaf
    a: Leaf
    b: Leaf
    scale: float = struct.field(pytree_node=False)

    def dot(self, x: Array, einsum: str) -> Array:
        """Returns the product with the base plus the product with `a` and then `b`."""
        taken, rest = einsum.split(",")
        given = rest.split("->")[1]
        thin = self.scale * dot(x, self.a, f"{taken},{taken}z->z")
        return dot(x, self.base, einsum) + dot(thin, self.b, f"z,z{given}->{given}")

    def full(self) -> Array:
        """Returns the sum as one array."""
        return self.base + self.scale * jnp.tensordot(self.a, self.b, 1)


def dot(x: Array, weight: Array | Weight, einsum: str) -> Array:
    """Returns `einsum` of each token's activations and a weight.

    Every multiplication by a model weight goes through here, so that a block need not know whether
    its weight is an array, an array with an adapter or a mixture. Tokens and features are flattened
    to one axis each: a compiler can then fold the transposes of the backward pass into its products
    instead of copying. Tokens that are sharded by position are not flattened, which would need an
    all-gather.

    Args:
      x: activations in the compute dtype: any axes of tokens, then the features in `einsum`.
      weight: a weight in the compute dtype: input features, then output features; an array may have
        them in the other order.
      einsum: of the features alone, such as "d,dnh->nh".
    """
    if not isinstance(weight, Array):
        return weight.dot(x, einsum)
    return _remade(functools.partial(_product, einsum))(x, weight)


def dot_of(
    f: Callable[..., Array], inputs: tuple[Array, ...], weight: Array | Weight, einsum: str
) -> Array:
    """Returns `dot` of `f(*inputs)`, an elementwise function that the backward pass computes again.

    That is cheaper than to store its result. An adapted weight has more than one product, which
    would be computed again too: there the result is stored.
    """
    if not isinstance(weight, Array):
        return dot(f(*inputs), weight, einsum)
    write = lambda *given: _product(einsum, f(*given[:-1]), given[-1])
    return _remade(write)(*inputs, weight)


def _remade(f: Callable[..., Array]) -> Callable[..., Array]:
    """Returns `f`, one product, with rematerialisation of all else: its arguments alone are stored.

    The product itself is not computed again, as no gradient needs it.
    """
    return jax.checkpoint(f, prevent_cse=False)


def _product(einsum: str, x: Array, weight: Array) -> Array:
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
        raise ValueError(
            f"dot: {einsum!r} must keep input features together, and output features too."
        )
    return y.reshape(*tokens, *shape)
