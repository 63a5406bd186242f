"""Grouped matmul on an NVIDIA Hopper GPU: a program for each tile of a result.

Blocks of rows are aligned to groups, so that none holds rows of two. The rows of choices are
gathered while they are loaded, each by a copy of its own, and then laid out as a tile.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from ..hopper import LANES, SWIZZLE, WGMMA, load, load_ahead, run, tiles
from .parts import in_parts
from .reference import Contracted, Rows, blocks

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


def matmul_config(rows: Rows, bank: Array, group_sizes: Array, *, contracted: int = 1) -> Config:
    """Returns the sizes of `matmul`: half of a group's last block is empty on average."""
    return Config(rows=128 if rows.shape[0] >= 256 * bank.shape[0] else 64)


def outer_config(*_: Any) -> Config:
    """Returns the sizes of `outer`."""
    return Config()


def matmul(
    rows: Rows,
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    *,
    contracted: Contracted = 1,
    config: Config,
    interpret: Any = None,
) -> Float[Array, "N M"]:
    """Returns the result of `reference.matmul`."""
    array, take = rows
    count, width = rows.shape[0], bank.shape[3 - contracted]
    sizes = jnp.append(group_sizes, count - group_sizes.sum())  # rows of no group are one more
    tables = blocks(sizes, count, config.rows)
    piece = config.piece // (array.shape[1] * array.dtype.itemsize)
    if take is not None and array.shape[0] > piece:
        # In the order of tokens, which then stay in the L2 cache for the rows of all groups.
        order = jnp.argsort(take[jnp.minimum(tables[1], count - 1)] // piece, stable=True)
        tables = tuple(table[order] for table in tables)
    tables = tuple(table.astype(jnp.int32) for table in tables)

    def make(array: Array, bank: Array, dtype: Any) -> Array:
        out = jax.ShapeDtypeStruct((count, bank.shape[3 - contracted]), dtype)
        left = _Side.memory(take, config.stages, config.rows, LANES)
        entry = (LANES, config.columns) if contracted == 1 else (config.columns, LANES)
        (made,) = run(
            functools.partial(_matmul_body, contracted=contracted, config=config),
            (tables, Rows(array, take), bank),
            [out],
            _memory(config, dtype, [left, tiles(config.stages, *entry)]),
            grid={"tile": tables[0].shape[0] * pl.cdiv(out.shape[1], config.columns)},
            warpgroups=2,
            name="grouped_matmul",
            interpret=interpret,
        )
        return made

    return in_parts(make, array, bank, array.dtype)[:count, :width].astype(array.dtype)


def _matmul_body(given, outs, sides, made, loaded, read, *, contracted, config) -> None:
    ((group, start, stop), rows, bank), (out,) = given, outs
    left, entries = sides[0]._replace(source=rows), sides[1]
    across = pl.cdiv(out.shape[1], config.columns)
    block, tile = plgpu.planar_snake(
        jax.lax.axis_index("tile"), (group.shape[0], across), 1, config.across
    )
    entry, first, columns = group[block], start[block], pl.ds(tile * config.columns, config.columns)
    length = jnp.minimum(stop[block] - first, config.rows)
    is_in_group = (length > 0) & (entry < bank.shape[0])
    steps = jnp.where(is_in_group, pl.cdiv(bank.shape[contracted], LANES), 0)

    def fill(step, slot):
        part = pl.ds(step * LANES, LANES)
        at = (part, columns) if contracted == 1 else (columns, part)
        plgpu.copy_gmem_to_smem(bank.at[entry, *at], entries.at[slot], loaded.at[slot])
        left.fill(first, step * LANES, slot, loaded.at[slot])

    def multiply(acc, slot, _):
        b = entries.at[slot] if contracted == 1 else entries.at[slot].transpose((1, 0))
        plgpu.wgmma(acc, left.tile(slot), b)

    def write():
        @pl.when(length == config.rows)
        def _():
            plgpu.copy_smem_to_gmem(made, out.at[pl.ds(first, config.rows), columns])

        @pl.when(length < config.rows)
        def _():
            @pl.loop(0, length)
            def _(row):
                to = out.at[pl.ds(first + row, 1), columns]
                plgpu.copy_smem_to_gmem(made.at[pl.ds(row, 1)], to)

    run_all = lambda: _sum_up(steps, fill, multiply, write, made, loaded, read, left.lag)
    pl.when(length > 0)(run_all)


def outer(
    left: Rows,
    right: Rows,
    group_sizes: Int[Array, "E"],
    *,
    config: Config,
    interpret: Any = None,
) -> Float[Array, "E D M"]:
    """Returns the result of `reference.outer`."""
    tall, wide = left.shape[1], right.shape[1]
    stop = jnp.cumsum(group_sizes).astype(jnp.int32)
    bounds, takes = (stop - group_sizes.astype(jnp.int32), stop), (left.take, right.take)

    def make(a: Array, b: Array, dtype: Any) -> Array:
        out = jax.ShapeDtypeStruct((group_sizes.shape[0], a.shape[1], b.shape[1]), dtype)
        across = pl.cdiv(out.shape[1], config.rows) * pl.cdiv(out.shape[2], config.columns)
        sizes = zip(takes, (config.rows, config.columns), strict=True)
        sides = [_Side.memory(take, config.stages, LANES, side) for take, side in sizes]
        (made,) = run(
            functools.partial(_outer_body, config=config),
            (bounds, [Rows(a, takes[0]), Rows(b, takes[1])]),
            [out],
            _memory(config, dtype, sides),
            grid={"group": out.shape[0], "tile": across},
            warpgroups=2,
            name="grouped_outer",
            interpret=interpret,
        )
        return made

    return in_parts(make, left.array, right.array, jnp.float32)[:, :tall, :wide]


def _outer_body(given, outs, sides, made, loaded, read, *, config) -> None:
    ((start, stop), sources), (out,) = given, outs
    group, tile = jax.lax.axis_index("group"), jax.lax.axis_index("tile")
    across = pl.cdiv(out.shape[2], config.columns)
    corner = (
        jax.lax.div(tile, across) * config.rows,
        jax.lax.rem(tile, across) * config.columns,
    )
    first, rows = start[group], stop[group] - start[group]
    left, right = (side._replace(source=x) for side, x in zip(sides, sources, strict=True))

    def fill(step, slot):
        for side, column in zip((left, right), corner, strict=True):
            side.fill(first + step * LANES, column, slot, loaded.at[slot])

    def multiply(acc, slot, step):
        a, b = (side.tile(slot, rows - step * LANES) for side in (left, right))
        plgpu.wgmma(acc, a.transpose((1, 0)), b)

    def write():
        to = out.at[group, pl.ds(corner[0], config.rows), pl.ds(corner[1], config.columns)]
        plgpu.copy_smem_to_gmem(made, to)

    lag = min(left.lag, right.lag)
    _sum_up(pl.cdiv(rows, LANES), fill, multiply, write, made, loaded, read, lag)


def _memory(config: Config, dtype: Any, sides: list[Any]) -> dict[str, Any]:
    """Returns the types of the memory of a kernel whose loads are of two sides."""
    copies = sum(side.copies if isinstance(side, _Side) else 1 for side in sides)
    return {
        "sides": sides,
        "made": plgpu.SMEM((config.rows, config.columns), dtype),
        "loaded": plgpu.Barrier(num_arrivals=copies, num_barriers=config.stages),
        "read": plgpu.Barrier(num_barriers=config.stages),
    }


def _sum_up(steps, fill, multiply, write, made, loaded, read, lag) -> None:
    """Sums the products of a tile, of which all but the last `lag` are awaited at each step."""
    warpgroup, stages = jax.lax.axis_index("warpgroup"), read.shape[0]
    pl.when(warpgroup == _LOAD)(lambda: load_ahead(steps, fill, read))

    def multiplied(acc):
        @pl.loop(0, steps)
        def _(step):
            slot = jax.lax.rem(step, stages)
            plgpu.barrier_wait(loaded.at[slot])
            multiply(acc, slot, step)
            plgpu.wgmma_wait(lag)
            done = lambda: plgpu.barrier_arrive(read.at[jax.lax.rem(step - lag, stages)])
            pl.when(step >= lag)(done)

        return acc[...]

    @pl.when(warpgroup == _MULTIPLY)
    def _():
        made[...] = pl.run_scoped(multiplied, plgpu.WGMMAAccumulatorRef(made.shape)).astype(
            made.dtype
        )
        plgpu.commit_smem()
        write()
        plgpu.wait_smem_to_gmem(0)


class _Side(NamedTuple):
    """One factor of a product: where its tiles are loaded to, and from.

    Attributes:
      loaded: shared memory of the tiles in flight.
      settled: of the tile that is made of gathered rows, if they are.
      source: the rows, in a kernel.
    """

    loaded: Any
    settled: Any
    source: Any = None

    @classmethod
    def memory(cls, take: Any, stages: int, rows: int, columns: int) -> "_Side":
        """Returns the types of the shared memory of tiles, whose rows are gathered by `take`."""
        if take is None:
            return cls(tiles(stages, rows, columns), None)
        # Swizzled pieces of rows of 128 bytes: reading eight of them meets no bank twice.
        pieces = stages, columns // LANES, rows, LANES
        loaded = plgpu.SMEM(pieces, jnp.bfloat16, transforms=(SWIZZLE,))
        return cls(loaded, tiles(rows, columns))

    @property
    def copies(self) -> int:
        """Number of copies for a tile: one, or one for each 128 bytes of a gathered row."""
        return 1 if self.settled is None else math.prod(self.loaded.shape[1:3])

    @property
    def lag(self) -> int:
        """Products that may be under way while the next tile is made."""
        return 1 if self.settled is None else 0

    def fill(self, first: Array, column: Array, slot: Array, barrier: Any) -> None:
        """Copies a tile from a row and a column on; the last row is copied again after it."""
        (source, take), into = self.source, self.loaded.at[slot]
        if take is None:
            rows, columns = into.shape
            tile = source.at[pl.ds(first, rows), pl.ds(column, columns)]
            return plgpu.copy_gmem_to_smem(tile, into, barrier)
        pieces, rows, _ = into.shape

        @pl.loop(0, rows)
        def _(row):
            at = take[jnp.minimum(first + row, take.shape[0] - 1)]
            for piece in range(pieces):
                one = source.at[pl.ds(at, 1), pl.ds(column + piece * LANES, LANES)]
                plgpu.copy_gmem_to_smem(one, into.at[piece, pl.ds(row, 1)], barrier)

    def tile(self, slot: Array, rest: Any = None) -> Any:
        """Returns a tile as tensor cores read it, with zeros from row `rest` on."""
        tile = self.loaded.at[slot]

        def keep(x):
            if rest is None:
                return x
            is_in = plgpu.broadcasted_iota(jnp.int32, x.shape, 0, layout=WGMMA) < rest
            return jnp.where(is_in, x, jnp.zeros_like(x))

        if self.settled is not None:
            for piece in range(tile.shape[0]):
                self.settled[:, pl.ds(piece * LANES, LANES)] = keep(load(tile.at[piece]))
            plgpu.commit_smem()
            return self.settled
        if rest is not None:

            @pl.when(rest < tile.shape[0])
            def _():
                tile[...] = keep(tile[...])
                plgpu.commit_smem()

        return tile
