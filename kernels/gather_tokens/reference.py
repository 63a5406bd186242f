"""Defines the result of gather: the rows of each sequence at given places."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def gather(x: Float[Array, "B T D"], index: Int[Array, "B C"]) -> Float[Array, "B C D"]:
    """Returns the rows of `x` at `index`, which lies in [0, T)."""
    return jnp.take_along_axis(x, index[..., None], axis=1, mode="promise_in_bounds")
