"""Defines the results of grouped matmul, as scans over blocks of rows of one group each.

It runs on a CPU, where `jax.lax.ragged_dot` multiplies every row by the entries of all groups: for
2048 rows and entries of 64 x 64 it took 3 times as long forward and backward with 8 groups, and 20
times with 64.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Contracted = Literal[1, 2]

_ROWS = 64  # rows of a block; of 32, 64 and 128 none is the fastest on a CPU for all shapes


class Rows(NamedTuple):
    """The rows of a product: those of an array, or some of them in any order.

    Attributes:
      array: where the rows are.
      take: number of each row in the array; None is 0, 1, 2, ...
    """

    array: Float[Array, "L D"]
    take: Int[Array, "N"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Number and width of the rows."""
        return (self.array if self.take is None else self.take).shape[0], self.array.shape[1]

    def gathered(self) -> Float[Array, "N D"]:
        """Returns the rows in an array of their own."""
        return self.array if self.take is None else self.array[self.take]


def matmul(
    rows: Rows,
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    *,
    contracted: Contracted = 1,
) -> Float[Array, "N M"]:
    """Returns the product of each row with its group's entry of the bank.

    Rows after the last group give zero, whatever they contain. The contracted axis of the bank is
    1, or 2 to multiply by transposed entries.
    """
    count, size = rows.shape[0], _size(rows.shape[0])
    tables, read = blocks(group_sizes, count, size), _reader(rows, size)

    def block(out: Array, block: tuple[Array, Array, Array]):
        group, start, stop = block
        contract = ((1,), (contracted - 1,)), ((), ())
        y = jax.lax.dot_general(
            read(start), bank[group], contract, preferred_element_type=jnp.float32
        )
        # The blocks of the next group overwrite these zeros.
        y = jnp.where((start + jnp.arange(size) < stop)[:, None], y, 0)
        return jax.lax.dynamic_update_slice_in_dim(out, y.astype(out.dtype), start, 0), None

    out = jnp.zeros((count + size, bank.shape[3 - contracted]), rows.array.dtype)
    return jax.lax.scan(block, out, tables)[0][:count]


def outer(left: Rows, right: Rows, group_sizes: Int[Array, "E"]) -> Float[Array, "E D M"]:
    """Returns the sum of the outer products of each group's rows, in float32; zero if it has none.

    Rows after the last group are not read.
    """
    size = _size(left.shape[0])
    read_left, read_right = _reader(left, size), _reader(right, size)

    def block(out: Array, block: tuple[Array, Array, Array]):
        group, start, stop = block
        is_in = start + jnp.arange(size) < stop
        a = jnp.where(is_in[:, None], read_left(start), 0)
        b = jnp.where(is_in[:, None], read_right(start), 0)
        return out.at[group].add(jnp.dot(a.T, b, preferred_element_type=jnp.float32)), None

    out = jnp.zeros((group_sizes.shape[0], left.shape[1], right.shape[1]), jnp.float32)
    return jax.lax.scan(block, out, blocks(group_sizes, left.shape[0], size))[0]


def blocks(
    group_sizes: Int[Array, "E"], count: int, size: int
) -> tuple[Int[Array, "n"], Int[Array, "n"], Int[Array, "n"]]:
    """Returns the group of each block, its first row, and the end of its group.

    `g` non-empty groups fill at most `(count + g (size - 1)) / size` blocks. Unused blocks begin
    and end after the last row.
    """
    num_groups = group_sizes.shape[0]
    num_blocks = (count + min(num_groups, count) * (size - 1)) // size
    needed, number = -(-group_sizes // size), jnp.arange(num_blocks)
    stop, behind = jnp.cumsum(group_sizes), jnp.cumsum(needed)
    group = jnp.minimum((behind <= number[:, None]).sum(1), num_groups - 1)
    start = (stop - group_sizes)[group] + size * (number - (behind - needed)[group])
    return group, jnp.minimum(start, count), stop[group]


def _size(count: int) -> int:
    return max(1, min(_ROWS, count))


def _reader(rows: Rows, size: int):
    """Returns a function from a first row to the block that begins there, to read in a scan."""
    if rows.take is None:
        padded = jnp.pad(rows.array, ((0, size), (0, 0)))
        return lambda start: jax.lax.dynamic_slice_in_dim(padded, start, size)
    padded = jnp.pad(rows.take, (0, size))
    return lambda start: rows.array[jax.lax.dynamic_slice_in_dim(padded, start, size)]
