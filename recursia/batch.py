"""All-reduces over the rows of a batch, inside a training step that runs on every device's rows.

A statistic that is no sum over tokens, such as a product of two means, needs the sums over the rows
of all devices first. Outside of a training step these are plain sums and means.

Terms that are identical on all devices are divided by `num_shards()`, so that gradients summed over
devices count them once.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

AXES = ("data", "fsdp", "expert")  # mesh axes that split the rows of a batch


def axes() -> tuple[str, ...]:
    """Returns the mesh axes along which the devices of this `shard_map` hold different rows."""
    mesh = jax.sharding.get_abstract_mesh()
    held = () if mesh.empty else mesh.manual_axes
    return tuple(axis for axis in AXES if axis in held and mesh.shape[axis] > 1)


def num_shards() -> int:
    """Returns the number of devices over which the rows are split."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in axes())


def total(x: Array) -> Array:
    """Returns the sum over the devices that hold other rows."""
    return jax.lax.psum(x, axes()) if axes() else x


def mean(
    values: Float[Array, "..."],
    over: int | tuple[int, ...],
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Returns a mean over the rows of all devices and other axes; 0 if there are no entries.

    Args:
      values: of this device's rows.
      over: the axes to reduce, the batch axis among them.
      where: the entries that count; None counts all.
    """
    counted = jnp.ones_like(values) if where is None else jnp.broadcast_to(where, values.shape)
    kept = values if where is None else jnp.where(where, values, 0)
    count = total(counted.sum(over, dtype=jnp.float32))
    return total(kept.sum(over, dtype=jnp.float32)) / jnp.maximum(count, 1.0)


def rows(count: int) -> Int[Array, "B"]:
    """Returns the indices, in the global batch, of the `count` rows that this device holds."""
    first = jax.lax.axis_index(axes()) * count if axes() else 0
    return first + jnp.arange(count)
