"""Grouped matmul on an NVIDIA Hopper GPU: a program for each tile of a result.

Blocks of rows are aligned to groups, so that none holds rows of two. The rows of choices are
gathered while they are loaded, each by a copy of its own, and then laid out as a tile.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from ..hopper import LANES, SWIZZLE, WGMMA, load, load_ahead, tiles
from .parts import in_parts
from .reference import Contracted, blocks

_MULTIPLY, _LOAD = 0, 1  # warpgroups
_MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a kernel.

    Attributes:
      rows: rows of a tile of the result, a multiple of 64.
      columns: columns of a tile, a multiple of 64.
      stages: loads in flight, each of 64 contracted numbers of a tile's rows and columns.
      across: tiles side by side that are computed before those of other rows.
      piece: bytes of tokens whose rows are gathered before those of others.
    """

    rows: int = 128
    columns: int = 128
    stages: int = 4
    across: int = 8
    piece: int = 25 * _MIB  # half of the L2 cache of an H100


def matmul_config(rows, bank, group_sizes, take=None, *, contracted=1) -> Config:
    """Returns the sizes of `matmul`: half of a group's last block is empty on average."""
    count = rows.shape[0] if take is None else take.shape[0]
    return Config(rows=128 if count >= 256 * bank.shape[0] else 64)


def outer_config(*_: Any) -> Config:
    """Returns the sizes of `outer`."""
    return Config()


def matmul(
    rows: Float[Array, "L D"],
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    take: Int[Array, "N"] | None = None,
    *,
    contracted: Contracted = 1,
    config: Config | None = None,
    interpret: Any = None,
) -> Float[Array, "N M"]:
    """Returns the result of `reference.matmul`."""
    count = rows.shape[0] if take is None else take.shape[0]
    width = bank.shape[3 - contracted]
    if 0 in (count, rows.shape[1], width):
        return jnp.zeros((count, width), rows.dtype)
    config = config or matmul_config(rows, bank, group_sizes, take)
    sizes = jnp.append(group_sizes, count - group_sizes.sum())  # rows of no group are one more
    tables = blocks(sizes, count, config.rows)
    piece = config.piece // (rows.shape[1] * rows.dtype.itemsize)
    if take is not None and rows.shape[0] > piece:
        # In the order of tokens, which then stay in the L2 cache for the rows of all groups.
        order = jnp.argsort(take[jnp.minimum(tables[1], count - 1)] // piece, stable=True)
        tables = tuple(table[order] for table in tables)
    tables = tuple(table.astype(jnp.int32) for table in tables)
    make = functools.partial(_matmul, tables, take, contracted, config, interpret)
    return in_parts(make, rows, bank, rows.dtype)[:count, :width].astype(rows.dtype)


def _matmul(tables, take, contracted, config, interpret, rows, bank, dtype) -> Array:
    count = rows.shape[0] if take is None else take.shape[0]
    width, stages, gathered = bank.shape[3 - contracted], config.stages, take is not None
    a, settled = _tiles(stages, config.rows, LANES, gathered)
    entry = (LANES, config.columns) if contracted == 1 else (config.columns, LANES)
    kernel = plgpu.kernel(
        functools.partial(_matmul_body, contracted=contracted, config=config),
        out_type=jax.ShapeDtypeStruct((count, width), dtype),
        scratch_types={
            "a": a,
            "b": tiles(stages, *entry),
            "settled": settled,
            "made": plgpu.SMEM((config.rows, config.columns), dtype),
            "loaded": plgpu.Barrier(
                num_arrivals=1 + (config.rows if gathered else 1), num_barriers=stages
            ),
            "read": plgpu.Barrier(num_barriers=stages),
        },
        grid=(tables[0].shape[0] * pl.cdiv(width, config.columns),),
        grid_names=("tile",),
        num_threads=2,
        thread_name="warpgroup",
        kernel_name="grouped_matmul",
        interpret=interpret,
    )
    return kernel(*tables, *((take,) if gathered else ()), rows, bank)


def _matmul_body(
    group, start, stop, *refs, a, b, settled, made, loaded, read, contracted, config
) -> None:
    *take, rows, bank, out = refs
    width = out.shape[1]
    across = pl.cdiv(width, config.columns)
    block, tile = plgpu.planar_snake(
        jax.lax.axis_index("tile"), (group.shape[0], across), 1, config.across
    )
    entry, first, column = group[block], start[block], tile * config.columns
    length = jnp.minimum(stop[block] - first, config.rows)
    is_in_group = (length > 0) & (entry < bank.shape[0])
    steps = jnp.where(is_in_group, pl.cdiv(bank.shape[contracted], LANES), 0)

    def fill(step, slot):
        part, columns = step * LANES, pl.ds(column, config.columns)
        at = (pl.ds(part, LANES), columns) if contracted == 1 else (columns, pl.ds(part, LANES))
        plgpu.copy_gmem_to_smem(bank.at[entry, *at], b.at[slot], loaded.at[slot])
        _fill(rows, take, first, part, a.at[slot], loaded.at[slot])

    def multiply(acc, slot, _):
        left = _settled(a.at[slot], settled, config.rows) if take else a.at[slot]
        right = b.at[slot] if contracted == 1 else b.at[slot].transpose((1, 0))
        plgpu.wgmma(acc, left, right)

    def write(acc):
        made[...] = acc.astype(made.dtype)
        plgpu.commit_smem()
        columns = pl.ds(column, config.columns)

        @pl.when(length == config.rows)
        def _():
            plgpu.copy_smem_to_gmem(made, out.at[pl.ds(first, config.rows), columns])

        @pl.when(length < config.rows)
        def _():
            @pl.loop(0, length)
            def _(row):
                to = out.at[pl.ds(first + row, 1), columns]
                plgpu.copy_smem_to_gmem(made.at[pl.ds(row, 1)], to)

        plgpu.wait_smem_to_gmem(0)

    @pl.when(length > 0)
    def _():
        _sum_up(steps, fill, multiply, write, made.shape, loaded, read, lag=0 if take else 1)


def outer(
    left: Float[Array, "L D"],
    right: Float[Array, "R M"],
    group_sizes: Int[Array, "E"],
    take_left: Int[Array, "N"] | None = None,
    take_right: Int[Array, "N"] | None = None,
    *,
    config: Config | None = None,
    interpret: Any = None,
) -> Float[Array, "E D M"]:
    """Returns the result of `reference.outer`."""
    tall, wide, num_groups = left.shape[1], right.shape[1], group_sizes.shape[0]
    count = left.shape[0] if take_left is None else take_left.shape[0]
    if 0 in (count, tall, wide, num_groups):
        return jnp.zeros((num_groups, tall, wide), jnp.float32)
    stop = jnp.cumsum(group_sizes).astype(jnp.int32)
    bounds, takes = (stop - group_sizes.astype(jnp.int32), stop), (take_left, take_right)
    make = functools.partial(_outer, bounds, takes, config or Config(), interpret)
    return in_parts(make, left, right, jnp.float32)[:, :tall, :wide]


def _outer(bounds, takes, config, interpret, left, right, dtype) -> Array:
    shape, size = (bounds[0].shape[0], left.shape[1], right.shape[1]), (config.rows, config.columns)
    gathered = [take is not None for take in takes]
    a, b = (_tiles(config.stages, LANES, *each) for each in zip(size, gathered, strict=True))
    copies = [side if each else 1 for side, each in zip(size, gathered, strict=True)]
    kernel = plgpu.kernel(
        functools.partial(_outer_body, config=config, gathered=gathered),
        out_type=jax.ShapeDtypeStruct(shape, dtype),
        scratch_types={
            "kept": [a, b],
            "made": plgpu.SMEM(size, dtype),
            "loaded": plgpu.Barrier(num_arrivals=sum(copies), num_barriers=config.stages),
            "read": plgpu.Barrier(num_barriers=config.stages),
        },
        grid=(shape[0], pl.cdiv(shape[1], size[0]) * pl.cdiv(shape[2], size[1])),
        grid_names=("group", "tile"),
        num_threads=2,
        thread_name="warpgroup",
        kernel_name="grouped_outer",
        interpret=interpret,
    )
    return kernel(*bounds, *(take for take in takes if take is not None), left, right)


def _outer_body(start, stop, *refs, kept, made, loaded, read, config, gathered) -> None:
    *takes, left, right, out = refs
    group, tile = jax.lax.axis_index("group"), jax.lax.axis_index("tile")
    across = pl.cdiv(out.shape[2], config.columns)
    down, along = (
        jax.lax.div(tile, across) * config.rows,
        jax.lax.rem(tile, across) * config.columns,
    )
    first, rows = start[group], stop[group] - start[group]
    takes = [takes[:1] if gathered[0] else [], takes[-1:] if gathered[1] else []]
    sides = list(zip((left, right), takes, (down, along), kept, strict=True))

    def fill(step, slot):
        for source, take, column, (each, _) in sides:
            _fill(source, take, first + step * LANES, column, each.at[slot], loaded.at[slot])

    def multiply(acc, slot, step):
        rest = rows - step * LANES
        a, b = (_settled(each.at[slot], into, rest) for each, into in kept)
        plgpu.wgmma(acc, a.transpose((1, 0)), b)

    def write(acc):
        made[...] = acc
        plgpu.commit_smem()
        to = out.at[group, pl.ds(down, config.rows), pl.ds(along, config.columns)]
        plgpu.copy_smem_to_gmem(made, to)
        plgpu.wait_smem_to_gmem(0)

    steps, lag = pl.cdiv(rows, LANES), 0 if any(gathered) else 1
    _sum_up(steps, fill, multiply, write, made.shape, loaded, read, lag)


def _sum_up(steps, fill, multiply, write, shape, loaded, read, lag) -> None:
    """Sums the products of a tile, of which all but the last `lag` are awaited at each step."""
    warpgroup, stages = jax.lax.axis_index("warpgroup"), read.shape[0]
    pl.when(warpgroup == _LOAD)(lambda: load_ahead(steps, fill, read))

    def run(acc):
        @pl.loop(0, steps)
        def _(step):
            slot = jax.lax.rem(step, stages)
            plgpu.barrier_wait(loaded.at[slot])
            multiply(acc, slot, step)
            plgpu.wgmma_wait(lag)
            done = lambda: plgpu.barrier_arrive(read.at[jax.lax.rem(step - lag, stages)])
            pl.when(step >= lag)(done)

        return acc[...]

    pl.when(warpgroup == _MULTIPLY)(
        lambda: write(pl.run_scoped(run, plgpu.WGMMAAccumulatorRef(shape)))
    )


def _tiles(stages, rows, columns, gathered) -> tuple[Any, list[Any]]:
    """Returns shared memory for tiles to load, and for the tile made of gathered rows, if any."""
    if not gathered:
        return tiles(stages, rows, columns), []
    # Swizzled pieces of rows of 128 bytes: reading eight of them meets no bank twice.
    pieces = stages, columns // LANES, rows, LANES
    return plgpu.SMEM(pieces, jnp.bfloat16, transforms=(SWIZZLE,)), [tiles(rows, columns)]


def _fill(source, take, first, column, into, loaded) -> None:
    """Copies a tile from a row and a column on, or the rows that `take` has from there on.

    After the last row to take, the last is copied again.
    """
    if not take:
        rows, columns = into.shape
        tile = source.at[pl.ds(first, rows), pl.ds(column, columns)]
        return plgpu.copy_gmem_to_smem(tile, into, loaded)
    pieces, rows, _ = into.shape

    @pl.loop(0, rows)
    def _(row):
        at = take[0][jnp.minimum(first + row, take[0].shape[0] - 1)]
        for piece in range(pieces):
            one = source.at[pl.ds(at, 1), pl.ds(column + piece * LANES, LANES)]
            plgpu.copy_gmem_to_smem(one, into.at[piece, pl.ds(row, 1)], loaded)


def _settled(tile, into, rest):
    """Returns a tile with zeros from row `rest` on; one of gathered rows is made `into` one."""

    def keep(x):
        is_in = plgpu.broadcasted_iota(jnp.int32, x.shape, 0, layout=WGMMA) < rest
        return jnp.where(is_in, x, jnp.zeros_like(x))

    if into:
        for piece in range(tile.shape[0]):
            into[0][:, pl.ds(piece * LANES, LANES)] = keep(load(tile.at[piece]))
        plgpu.commit_smem()
        return into[0]

    @pl.when(rest < tile.shape[0])
    def _():
        tile[...] = keep(tile[...])
        plgpu.commit_smem()

    return tile
