"""Relative position bias: scores of each distance between a query and a key, laid over the keys."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .where import Where


def over_keys(
    relative: Float[Array, "G T R"], where: Where, first: int | None
) -> Float[Array, "G T S"]:
    """Returns the score of each query for each key; those R and more positions away have the last.

    Args:
      relative: scores of keys 0, 1, 2, ... positions before each query.
      where: positions of the queries and keys, and their segments.
      first: how far the first query is behind the first key where positions are places, which then
        takes no gather, and no scatter for the gradient; None reads the positions.
    """
    if first is None:
        queries, keys, *_ = where.arrays
        behind = jnp.clip(queries[:, None] - keys[None, :], 0, relative.shape[-1] - 1)[None]
        return jnp.take_along_axis(relative, behind, axis=-1)
    (groups, count, size), keys = relative.shape, len(where.arrays[1])
    if (near := max(0, size + keys - 1 - first)) < count:  # the queries after have the last alone
        rest = jnp.broadcast_to(relative[:, near:, -1:], (groups, count - near, keys))
        return jnp.concatenate([over_keys(relative[:, :near], where, first), rest], axis=1)
    farthest = first + count - 1
    # From the farthest key of the last query to one after the nearest of the first.
    given = relative[..., : min(size, farthest + 1)][..., ::-1]
    beside = max(0, farthest + 1 - size), keys - first
    line = jnp.pad(given, [(0, 0), (0, 0), beside], mode="edge")
    # The line of each query begins one place later than that of the query after it.
    wide = line.shape[-1] - 1
    flat = line.reshape(groups, -1)[:, count - 1 : count - 1 + count * wide]
    return flat.reshape(groups, count, wide)[..., :keys]
