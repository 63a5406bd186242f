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
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from .reference import Contracted
from .visits import PART, bounds_of, by_part, current, is_in, listed

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
    rows: Float[Array, "L D"],
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    take: Int[Array, "N"] | None = None,
    *,
    contracted: Contracted = 1,
    config: Config | None = None,
    interpret: Any = False,
) -> Float[Array, "N M"]:
    """Returns the result of `reference.matmul`."""
    config = config or matmul_config(rows, bank, group_sizes, take, contracted=contracted)
    dtype = common(rows, bank)
    rows, out_dtype = rows if take is None else rows[take], rows.dtype
    (count, inner), width, num_groups = rows.shape, bank.shape[3 - contracted], bank.shape[0]
    if 0 in (count, inner, width):
        return jnp.zeros((count, width), out_dtype)
    size, tile = min(config.rows, count), min(config.columns, width)
    # Rows of no group are one more group, which loads neither rows nor an entry of its own.
    in_groups = group_sizes.sum()
    sizes = jnp.append(group_sizes, count - in_groups)
    group, block, *ends, total = listed(sizes, count, size, of_empty=0)
    read = jnp.minimum(block, jnp.maximum(in_groups - 1, 0) // size)
    bounds = bounds_of(total, block, pl.cdiv(width, tile) % 2 == 1 and count > size)
    tables = bounds, group, block, *ends, read

    def spec(shape: tuple[int | None, ...], at: Any) -> pl.BlockSpec:
        visit = lambda p, step, bounds: jnp.minimum(bounds[p] + step, bounds[p + 1] - 1)
        return pl.BlockSpec(shape, lambda p, m, step, *t: at(m, visit(p, step, t[0]), *t[1:]))

    own = lambda group, v: jnp.minimum(group[v], num_groups - 1)
    if contracted == 1:
        entry = spec((None, inner, tile), lambda m, v, group, *_: (own(group, v), 0, m))
    else:
        entry = spec((None, tile, inner), lambda m, v, group, *_: (own(group, v), m, 0))
    return pl.pallas_call(
        functools.partial(_matmul_body, size=size, num_groups=num_groups, contracted=contracted),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=(len(bounds) - 1, pl.cdiv(width, tile), jnp.diff(bounds).max()),
            in_specs=[spec((size, inner), lambda m, v, *tables: (tables[-1][v], 0)), entry],
            out_specs=spec((size, tile), lambda m, v, _, block, *__: (block[v], m)),
        ),
        out_shape=jax.ShapeDtypeStruct((count, width), out_dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(count, inner, width, rows, bank, out_dtype),
        name="grouped_matmul",
        interpret=interpret,
    )(*tables, rows.astype(dtype), bank.astype(dtype))


def matmul_config(
    rows: Array, bank: Array, group_sizes: Array, take: Any = None, *, contracted: Contracted = 1
) -> Config:
    """Returns the computed sizes of `matmul`."""
    item, inner, width = common(rows, bank).itemsize, rows.shape[1], bank.shape[3 - contracted]
    if inner >= _DIVIDED and not (inner % 128 or width % 128):
        raise NotImplementedError(f"does not divide a contracted width of {inner}; megablox does")
    if inner * item > _WIDEST:
        raise NotImplementedError(f"a row takes {inner * item} bytes, more than {_WIDEST}")
    size = _size(rows.shape[0] if take is None else take.shape[0], inner * item)
    most = min(_ENTRY_BYTES // (max(1, inner) * item), _ENTRY_BYTES // (4 * max(1, size)))
    return Config(max(1, size), max(1, _tile(width, most)))


def _matmul_body(
    bounds, group, block, start, stop, _, rows, entry, out, *, size, num_groups, contracted
):
    visit, is_idle, _ = current(bounds, 2)
    first = block[visit] * size
    begin = start[visit] - first
    end = jnp.where(is_idle, begin, stop[visit] - first)
    is_in_group = group[visit] < num_groups
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
    left: Float[Array, "L D"],
    right: Float[Array, "R M"],
    group_sizes: Int[Array, "E"],
    take_left: Int[Array, "N"] | None = None,
    take_right: Int[Array, "N"] | None = None,
    *,
    config: OuterConfig | None = None,
    interpret: Any = False,
) -> Float[Array, "E D M"]:
    """Returns the result of `reference.outer`."""
    config = config or outer_config(left, right, group_sizes, take_left, take_right)
    dtype = common(left, right)
    left = left if take_left is None else left[take_left]
    right = right if take_right is None else right[take_right]
    (count, tall), wide, num_groups = left.shape, right.shape[1], group_sizes.shape[0]
    if 0 in (count, tall, wide):
        return jnp.zeros((num_groups, tall, wide), jnp.float32)
    size, down, across = min(config.rows, count), min(config.tall, tall), min(config.wide, wide)
    tiles = pl.cdiv(tall, down), pl.cdiv(wide, across)
    group, block, *ends, total = listed(group_sizes, count, size, of_empty=1)
    bounds = bounds_of(total, group, tiles[0] * tiles[1] % 2 == 1 and num_groups > 1)
    tables = bounds, group, block, *ends

    def spec(shape: tuple[int | None, ...], at: Any) -> pl.BlockSpec:
        visit = lambda p, step, bounds: jnp.minimum(bounds[p] + step, bounds[p + 1] - 1)
        return pl.BlockSpec(shape, lambda p, d, m, step, *t: at(d, m, visit(p, step, t[0]), *t[1:]))

    return pl.pallas_call(
        functools.partial(_outer_body, size=size),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=(len(bounds) - 1, *tiles, jnp.diff(bounds).max()),
            in_specs=[
                spec((size, down), lambda d, m, v, _, block, *__: (block[v], d)),
                spec((size, across), lambda d, m, v, _, block, *__: (block[v], m)),
            ],
            out_specs=spec((None, down, across), lambda d, m, v, group, *_: (group[v], d, m)),
        ),
        out_shape=jax.ShapeDtypeStruct((num_groups, tall, wide), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(count, tall, wide, left, right, jnp.float32, num_groups * tall * wide),
        name="grouped_outer",
        interpret=interpret,
    )(*tables, left.astype(dtype), right.astype(dtype))


def outer_config(
    left: Array, right: Array, group_sizes: Array, take_left: Any = None, take_right: Any = None
) -> OuterConfig:
    """Returns the computed sizes of `outer`."""
    item, count = common(left, right).itemsize, (left if take_left is None else take_left).shape[0]
    across = max(1, _tile(right.shape[1], 1024))
    down = max(1, _tile(left.shape[1], _ENTRY_BYTES // (4 * max(across, 128))))
    return OuterConfig(max(1, _size(count, max(down, across) * item)), down, across)


def _outer_body(bounds, group, block, start, stop, left, right, out, *, size):
    visit, is_idle, is_first = current(bounds, 3)
    first = block[visit] * size
    begin = start[visit] - first
    end = jnp.where(is_idle, begin, stop[visit] - first)
    dot = functools.partial(_dot, axes=(0, 0))

    @pl.when(is_first | (~is_idle & (group[visit] != group[jnp.maximum(visit - 1, 0)])))
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


def _cost(count, tall, wide, a, b, dtype, outputs=None) -> pl.CostEstimate:
    outputs = count * wide if outputs is None else outputs
    return pl.CostEstimate(
        flops=2 * count * tall * wide,
        transcendentals=0,
        bytes_accessed=a.nbytes + b.nbytes + outputs * jnp.dtype(dtype).itemsize,
    )
