"""Sums over all rows of a batch, from inside a program that holds some of them.

A training step is run by every device on its own rows. Whatever is no sum over tokens, such as a
product of two means, needs the sums of all rows first. Outside such a step these are plain sums.

What every device then has alike counts once in the loss, so each brings its `share`: gradients are
those of the sum over devices.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

AXES = ("data", "fsdp", "expert")  # of the mesh, that split the rows of a batch


def axes() -> tuple[str, ...]:
    """Returns the mesh axes of several devices over which this program holds only its own rows."""
    mesh = jax.sharding.get_abstract_mesh()
    held = () if mesh.empty else mesh.manual_axes
    return tuple(axis for axis in AXES if axis in held and mesh.shape[axis] > 1)


def num_shards() -> int:
    """Returns over how many devices the rows are split."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in axes())


def total(x: Array) -> Array:
    """Returns the sum of what every device has."""
    return jax.lax.psum(x, axes()) if axes() else x


def mean(
    values: Float[Array, "..."],
    over: int | tuple[int, ...],
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Returns a mean over axes of which one is the batch; of nothing it is 0.

    Args:
      values: of this device's rows.
      over: the axes.
      where: the entries to take; None takes all.
    """
    counted = jnp.ones_like(values) if where is None else jnp.broadcast_to(where, values.shape)
    kept = values if where is None else jnp.where(where, values, 0)
    count = total(counted.sum(over, dtype=jnp.float32))
    return total(kept.sum(over, dtype=jnp.float32)) / jnp.maximum(count, 1.0)


def rows(count: int) -> Int[Array, "B"]:
    """Returns the numbers, in the whole batch, of the `count` rows that this device holds."""
    first = jax.lax.axis_index(axes()) * count if axes() else 0
    return first + jnp.arange(count)
