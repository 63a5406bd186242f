"""Visits of grouped matmul on a TPU: the list of pairs of a block of rows and a group in it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

PART = 128  # rows of a part of a block shared by groups; fewer would not keep the MXU busy


def listed(
    group_sizes: Array, count: int, size: int, of_empty: int
) -> tuple[tuple[Array, ...], Array]:
    """Returns each visit's group and block, the group's first row and end; and how many there are.

    Visits of one group are adjacent, and so are those of one block.

    Args:
      group_sizes: rows of each group.
      count: number of rows, at least 1.
      size: rows of a block.
      of_empty: visits of an empty group: 1 if it has a result to set to zero.
    """
    num_blocks, num_groups = pl.cdiv(count, size), group_sizes.shape[0]
    number = jnp.arange(num_blocks + (num_groups if of_empty else min(num_groups, count)) - 1)
    stop = jnp.cumsum(group_sizes.astype(jnp.int32))
    start = stop - group_sizes.astype(jnp.int32)
    needed = jnp.where(stop > start, (stop - 1) // size - start // size + 1, of_empty)
    behind = jnp.cumsum(needed)
    group = jnp.minimum((behind <= number[:, None]).sum(1), num_groups - 1)
    block = start[group] // size + number - (behind - needed)[group]
    block = jnp.minimum(block, num_blocks - 1)
    return (group, block, start[group], stop[group]), behind[-1]


def by_part(part: Any, begin: Array, end: Array, size: int) -> None:
    """Runs `part` on the parts of a block with rows from `begin` to `end`, unless all have."""
    step = min(PART, size)
    first = jax.lax.div(jnp.maximum(begin, 0), step)
    last = jax.lax.div(jnp.minimum(end, size) + step - 1, step)

    @pl.when((begin > 0) | (end < size))
    def _():
        if size == step:
            pl.when(first < last)(lambda: part(pl.ds(0, size)))
        else:
            at = lambda i: pl.ds(pl.multiple_of(i * step, step), step)
            jax.lax.fori_loop(first, last, lambda i, _: part(at(i)), None)


def is_in(at: Any, begin: Array, end: Array) -> Array:
    """Returns which rows of a part of a block are from `begin` to `end`."""
    row = at.start + jax.lax.broadcasted_iota(jnp.int32, (at.size, 1), 0)
    return (row >= begin) & (row < end)
