"""Grouped matmul on a TPU: blocks of rows, each visited once for every group in it.

Tables of the visits are prefetched to scalar memory, so that the next rows and the next entry of
the bank load while the current visit multiplies. An entry stays in VMEM for all visits of its
group, and rows for all groups of their block. Where columns do not divide over the two cores of a
chip, the list of visits is halved for them.

The contracted width is not divided: the wider it is, the fewer columns fit. From 4096 on megablox,
which divides it, does more arithmetic for each byte.

The tokens of choices are gathered before: rows of a tiled array are not contiguous in memory, and
fetching them one by one takes longer than writing and reading a copy.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from ..visits import Visit, Visits, bounds_of
from .reference import Contracted, Rows
from .visits import PART, by_part, is_in, listed

_ROWS = 512  # of a block: of width 1024, 1 MiB, which takes longer to load than a step's overhead
_BLOCK_BYTES = 1 << 20  # of rows; of each array two are in fast memory, 16 MiB in all
_ENTRY_BYTES = 2 << 20  # of a bank's block, and of a float32 result's
_WIDEST = 32 << 10  # bytes of a row, for a bank's block of 128 columns to take 4 MiB
_DIVIDED = 4096  # contracted width from which megablox takes over


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a block of the product: rows, and columns of the bank."""

    rows: int
    columns: int


@dataclasses.dataclass(frozen=True)
class OuterConfig:
    """Sizes of a block: rows that are summed over, and the sides of the sum."""

    rows: int
    tall: int
    wide: int


def matmul(
    rows: Rows,
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    *,
    contracted: Contracted = 1,
    config: Config,
    interpret: Any = False,
) -> Float[Array, "N M"]:
    """Returns the result of `reference.matmul`."""
    (count, inner), width, num_groups = rows.shape, bank.shape[3 - contracted], bank.shape[0]
    size, tile = min(config.rows, count), min(config.columns, width)
    # Rows of no group are one more group, which loads neither rows nor an entry of its own.
    in_groups = group_sizes.sum()
    tables, total = listed(jnp.append(group_sizes, count - in_groups), count, size, of_empty=0)
    block = tables[1]
    read = jnp.minimum(block, jnp.maximum(in_groups - 1, 0) // size)
    bounds = bounds_of(total, block, pl.cdiv(width, tile) % 2 == 1 and count > size)
    visits = Visits(bounds, (*tables, read), (pl.cdiv(width, tile),))
    own = lambda group, v: jnp.minimum(group[v], num_groups - 1)
    if contracted == 1:
        entry = visits.spec((None, inner, tile), lambda m, v, group, *_: (own(group, v), 0, m))
    else:
        entry = visits.spec((None, tile, inner), lambda m, v, group, *_: (own(group, v), m, 0))
    dtype = common(rows.array, bank)
    arrays = rows.gathered().astype(dtype), bank.astype(dtype)
    out = jax.ShapeDtypeStruct((count, width), rows.array.dtype)
    return visits.call(
        functools.partial(_matmul_body, size=size, num_groups=num_groups, contracted=contracted),
        arrays,
        in_specs=[visits.spec((size, inner), lambda m, v, *tables: (tables[-1][v], 0)), entry],
        out_specs=visits.spec((size, tile), lambda m, v, _, block, *__: (block[v], m)),
        out_shape=out,
        cost_estimate=_cost(count * inner * width, *arrays, out),
        name="grouped_matmul",
        interpret=interpret,
    )


def matmul_config(
    rows: Rows, bank: Array, group_sizes: Array, *, contracted: Contracted = 1
) -> Config:
    """Returns the computed sizes of `matmul`."""
    item, (count, inner) = common(rows.array, bank).itemsize, rows.shape
    width = bank.shape[3 - contracted]
    if inner >= _DIVIDED and not (inner % 128 or width % 128):
        raise NotImplementedError(f"does not divide a contracted width of {inner}; megablox does")
    if inner * item > _WIDEST:
        raise NotImplementedError(f"a row takes {inner * item} bytes, more than {_WIDEST}")
    size = _size(count, inner * item)
    return Config(
        size, _tile(width, min(_ENTRY_BYTES // (inner * item), _ENTRY_BYTES // (4 * size)))
    )


def _matmul_body(
    visit: Visit, group, block, start, stop, _, rows, entry, out, *, size, num_groups, contracted
):
    at = visit.last
    first = block[at] * size
    begin = start[at] - first
    end = jnp.where(visit.is_idle, begin, stop[at] - first)
    is_in_group = group[at] < num_groups
    dot = functools.partial(_dot, axes=(1, contracted - 1))

    def write(product):
        @pl.when((begin <= 0) & (end >= size))
        def _():
            out[...] = product(pl.ds(0, size)).astype(out.dtype)

        def part(at):
            # The other rows belong to the groups before or after.
            y = jnp.where(is_in(at, begin, end), product(at), out[at, :].astype(jnp.float32))
            out[at, :] = y.astype(out.dtype)

        by_part(part, begin, end, size)

    pl.when(is_in_group)(lambda: write(lambda at: dot(rows[at, :], entry[...])))
    zeros = lambda at: jnp.zeros((at.size, out.shape[1]), jnp.float32)
    pl.when(~is_in_group)(lambda: write(zeros))


def outer(
    left: Rows,
    right: Rows,
    group_sizes: Int[Array, "E"],
    *,
    config: OuterConfig,
    interpret: Any = False,
) -> Float[Array, "E D M"]:
    """Returns the result of `reference.outer`."""
    (count, tall), wide, num_groups = left.shape, right.shape[1], group_sizes.shape[0]
    size, down, across = min(config.rows, count), min(config.tall, tall), min(config.wide, wide)
    tiles = pl.cdiv(tall, down), pl.cdiv(wide, across)
    tables, total = listed(group_sizes, count, size, of_empty=1)
    bounds = bounds_of(total, tables[0], tiles[0] * tiles[1] % 2 == 1 and num_groups > 1)
    visits, dtype = Visits(bounds, tables, tiles), common(left.array, right.array)
    arrays = left.gathered().astype(dtype), right.gathered().astype(dtype)
    out = jax.ShapeDtypeStruct((num_groups, tall, wide), jnp.float32)
    return visits.call(
        functools.partial(_outer_body, size=size),
        arrays,
        in_specs=[
            visits.spec((size, down), lambda d, m, v, _, block, *__: (block[v], d)),
            visits.spec((size, across), lambda d, m, v, _, block, *__: (block[v], m)),
        ],
        out_specs=visits.spec((None, down, across), lambda d, m, v, group, *_: (group[v], d, m)),
        out_shape=out,
        cost_estimate=_cost(count * tall * wide, *arrays, out),
        name="grouped_outer",
        interpret=interpret,
    )


def outer_config(left: Rows, right: Rows, group_sizes: Array) -> OuterConfig:
    """Returns the computed sizes of `outer`."""
    item, (count, tall) = common(left.array, right.array).itemsize, left.shape
    across = _tile(right.shape[1], 1024)
    down = _tile(tall, _ENTRY_BYTES // (4 * max(across, 128)))
    return OuterConfig(_size(count, max(down, across) * item), down, across)


def _outer_body(visit: Visit, group, block, start, stop, left, right, out, *, size):
    at = visit.last
    first = block[at] * size
    begin = start[at] - first
    end = jnp.where(visit.is_idle, begin, stop[at] - first)
    is_new = ~visit.is_idle & (group[at] != group[jnp.maximum(at - 1, 0)])
    dot = functools.partial(_dot, axes=(0, 0))

    @pl.when((visit.number == visit.begin) | is_new)
    def _():
        out[...] = jnp.zeros_like(out)

    @pl.when((begin <= 0) & (end >= size))
    def _():
        out[...] += dot(left[...], right[...])

    def part(at):
        mask = lambda a: jnp.where(is_in(at, begin, end), a[at, :].astype(jnp.float32), 0)
        out[...] += dot(mask(left).astype(left.dtype), mask(right).astype(right.dtype))

    by_part(part, begin, end, size)


def common(a: Array, b: Array) -> jnp.dtype:
    """Returns the dtype in which two arrays are multiplied."""
    dtype = jnp.promote_types(a.dtype, b.dtype)
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"multiplies float32 and bfloat16, not {dtype}")
    return dtype


def _size(count: int, row_bytes: int) -> int:
    if count < PART:
        return count
    return min(_ROWS, max(1, min(count, _BLOCK_BYTES // row_bytes) // PART) * PART)


def _tile(width: int, most: int) -> int:
    return width if width <= most else max(1, most // 128) * 128


def _dot(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    return jax.lax.dot_general(
        a,
        b,
        (((axes[0],), (axes[1],)), ((), ())),
        precision="highest" if a.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _cost(products: int, *arrays: Any) -> pl.CostEstimate:
    moved = sum(x.size * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(flops=2 * products, transcendentals=0, bytes_accessed=moved)
