"""Fully sharded parameters: gathered in the step that uses them, gradients reduce-scattered.

A training step is a `shard_map` over the mesh axes that split the rows of a batch. Each device
holds a shard of a parameter, and gathers it in every recursion, or once if all of them share it.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from recursia import batch
from recursia.params import Leaf, Spec
from recursia.sharding import Rules, splitting

GATHERED = ("data", "fsdp")  # mesh axes whose shards of a parameter are gathered
Dims = tuple[tuple[int, tuple[str, ...]], ...]  # an axis, counted from the last, and its mesh axes


def by_rows(spec: PartitionSpec) -> PartitionSpec:
    """Returns a partition without the mesh axes that do not split the rows of a batch."""
    keep = lambda names: tuple(name for name in names if name in batch.AXES) or None
    return PartitionSpec(*map(keep, _names(spec)))


def summed(x: Array, spec: PartitionSpec) -> Array:
    """Returns the sum of a gradient over devices that hold the same shard and other rows."""
    split = set(itertools.chain.from_iterable(_names(spec)))
    axes = tuple(axis for axis in batch.axes() if axis not in split)
    return jax.lax.psum(x, axes) if axes else x


def _names(spec: PartitionSpec) -> list[tuple[str, ...]]:
    return [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec]


@struct.dataclass
class Shard:
    """A device's shard of a parameter, gathered in the step that uses it.

    Attributes:
      part: float32.
      dims: the sharded axes and their mesh axes. Axes are counted from the last, as leading axes
        may be indexed away.
    """

    part: Leaf
    dims: Dims = struct.field(pytree_node=False)


def shard(spec: Spec, part: Array, mesh: Mesh, rules: Rules) -> Array | Shard:
    """Returns a device's part of a parameter as a `Shard`, or as it is if it is not sharded."""
    dims = []
    for dim, name in enumerate(spec.axes):
        split = tuple(axis for axis in splitting(name, rules) if axis in GATHERED)
        if math.prod(mesh.shape[axis] for axis in split) > 1:
            dims.append((dim - len(spec.axes), split))
    return Shard(part, tuple(dims)) if dims else part


def gathered(weight: Array | Shard, dtype: DTypeLike, moved: DTypeLike | None = None) -> Array:
    """Returns a weight in `dtype`, all-gathered if it is a shard.

    The gradient of a shard is reduce-scattered in float32.

    Args:
      weight: float32.
      dtype: of the result.
      moved: dtype of the all-gather, to which the weight is rounded; None takes `dtype`.
    """
    moved = dtype if moved is None else moved
    if isinstance(weight, Shard):
        return _gather(weight.part, weight.dims, moved, dtype)
    return weight.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(part: Array, dims: Dims, moved: DTypeLike, dtype: DTypeLike) -> Array:
    x = part.astype(moved)
    for dim, axes in dims:
        x = jax.lax.all_gather(x, axes, axis=x.ndim + dim, tiled=True)
    return x.astype(dtype)


def _scatter(dims: Dims, moved: DTypeLike, dtype: DTypeLike, _: None, grad: Array) -> tuple[Array]:
    grad = grad.astype(jnp.float32)
    for dim, axes in reversed(dims):
        place = grad.ndim + dim
        grad = jax.lax.psum_scatter(grad, axes, scatter_dimension=place, tiled=True)
    return (grad,)


_gather.defvjp(lambda part, *how: (_gather(part, *how), None), _scatter)
