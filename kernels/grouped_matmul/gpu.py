"""Grouped matmul on an NVIDIA Hopper GPU: a program for each tile of a result.

Blocks of rows are aligned to groups, so that none holds rows of two.
"""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from ..hopper import LANES, load_ahead, run, tiles
from .factor import Factor
from .parts import in_parts
from .reference import Contracted, Rows, blocks
from .sizes import OfGpu

_MULTIPLY, _LOAD = 0, 1  # warpgroups


def matmul(
    rows: Rows,
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    *,
    contracted: Contracted = 1,
    config: OfGpu,
    interpret: Any = None,
) -> Float[Array, "N M"]:
    """Returns the result of `reference.matmul`."""
    count, width = rows.shape[0], bank.shape[3 - contracted]
    tables = _blocks(rows, group_sizes, config)

    def make(array: Array, bank: Array, dtype: Any) -> Array:
        out = jax.ShapeDtypeStruct((count, bank.shape[3 - contracted]), dtype)
        left = Factor.memory(rows.take, config.stages, config.rows, LANES)
        entry = (LANES, config.columns) if contracted == 1 else (config.columns, LANES)
        (made,) = run(
            functools.partial(_matmul_body, contracted=contracted, config=config),
            (tables, Rows(array, rows.take), bank),
            [out],
            _memory(config, dtype, [left, Factor(tiles(config.stages, *entry))]),
            grid={"tile": tables[0].shape[0] * pl.cdiv(out.shape[1], config.columns)},
            warpgroups=2,
            name="grouped_matmul",
            interpret=interpret,
        )
        return made

    made = in_parts(make, rows.array, bank, rows.array.dtype)
    return made[:count, :width].astype(rows.array.dtype)


def _blocks(rows: Rows, group_sizes: Array, config: OfGpu) -> tuple[Array, ...]:
    """Returns the group of each block, its first row, and the end of its group."""
    (array, take), count = rows, rows.shape[0]
    sizes = jnp.append(group_sizes, count - group_sizes.sum())  # rows of no group are one more
    tables = blocks(sizes, count, config.rows)
    piece = config.piece // (array.shape[1] * array.dtype.itemsize)
    if take is not None and array.shape[0] > piece:
        # In the order of tokens, which then stay in the L2 cache for the rows of all groups.
        order = jnp.argsort(take[jnp.minimum(tables[1], count - 1)] // piece, stable=True)
        tables = tuple(table[order] for table in tables)
    return tuple(table.astype(jnp.int32) for table in tables)


def _matmul_body(
    given: Any, outs: Any, memory: SimpleNamespace, *, contracted: Contracted, config: OfGpu
) -> None:
    ((group, start, stop), rows, bank), (out,) = given, outs
    left, entries = memory.sides
    across = pl.cdiv(out.shape[1], config.columns)
    block, tile = plgpu.planar_snake(
        jax.lax.axis_index("tile"), (group.shape[0], across), 1, config.across
    )
    entry, first, columns = group[block], start[block], pl.ds(tile * config.columns, config.columns)
    length = jnp.minimum(stop[block] - first, config.rows)
    is_in_group = (length > 0) & (entry < bank.shape[0])
    steps = jnp.where(is_in_group, pl.cdiv(bank.shape[contracted], LANES), 0)

    def fill(step, slot, barrier):
        part = pl.ds(step * LANES, LANES)
        at = (part, columns) if contracted == 1 else (columns, part)
        plgpu.copy_gmem_to_smem(bank.at[entry, *at], entries.loaded.at[slot], barrier)
        left.fill(rows, first, step * LANES, slot, barrier)

    def multiply(acc, slot, _):
        b = entries.tile(slot)
        plgpu.wgmma(acc, left.tile(slot), b if contracted == 1 else b.transpose((1, 0)))

    def write():
        @pl.when(length == config.rows)
        def _():
            plgpu.copy_smem_to_gmem(memory.made, out.at[pl.ds(first, config.rows), columns])

        @pl.when(length < config.rows)
        def _():
            @pl.loop(0, length)
            def _(row):
                to = out.at[pl.ds(first + row, 1), columns]
                plgpu.copy_smem_to_gmem(memory.made.at[pl.ds(row, 1)], to)

    pl.when(length > 0)(lambda: _sum_up(steps, fill, multiply, write, memory))


def outer(
    left: Rows, right: Rows, group_sizes: Array, *, config: OfGpu, interpret: Any = None
) -> Array:
    """Returns the result of `reference.outer`."""
    tall, wide = left.shape[1], right.shape[1]
    stop = jnp.cumsum(group_sizes).astype(jnp.int32)
    bounds, takes = (stop - group_sizes.astype(jnp.int32), stop), (left.take, right.take)

    def make(a: Array, b: Array, dtype: Any) -> Array:
        out = jax.ShapeDtypeStruct((group_sizes.shape[0], a.shape[1], b.shape[1]), dtype)
        across = pl.cdiv(out.shape[1], config.rows) * pl.cdiv(out.shape[2], config.columns)
        sizes = zip(takes, (config.rows, config.columns), strict=True)
        factors = [Factor.memory(take, config.stages, LANES, size) for take, size in sizes]
        (made,) = run(
            functools.partial(_outer_body, config=config),
            (bounds, [Rows(a, takes[0]), Rows(b, takes[1])]),
            [out],
            _memory(config, dtype, factors),
            grid={"group": out.shape[0], "tile": across},
            warpgroups=2,
            name="grouped_outer",
            interpret=interpret,
        )
        return made

    return in_parts(make, left.array, right.array, jnp.float32)[:, :tall, :wide]


def _outer_body(given: Any, outs: Any, memory: SimpleNamespace, *, config: OfGpu) -> None:
    ((start, stop), sources), (out,) = given, outs
    group, tile = jax.lax.axis_index("group"), jax.lax.axis_index("tile")
    across = pl.cdiv(out.shape[2], config.columns)
    corner = (
        jax.lax.div(tile, across) * config.rows,
        jax.lax.rem(tile, across) * config.columns,
    )
    first, rows = start[group], stop[group] - start[group]

    def fill(step, slot, barrier):
        for side, source, column in zip(memory.sides, sources, corner, strict=True):
            side.fill(source, first + step * LANES, column, slot, barrier)

    def multiply(acc, slot, step):
        a, b = (side.tile(slot, rows - step * LANES) for side in memory.sides)
        plgpu.wgmma(acc, a.transpose((1, 0)), b)

    def write():
        to = out.at[group, pl.ds(corner[0], config.rows), pl.ds(corner[1], config.columns)]
        plgpu.copy_smem_to_gmem(memory.made, to)

    _sum_up(pl.cdiv(rows, LANES), fill, multiply, write, memory)


def _memory(config: OfGpu, dtype: Any, factors: list[Factor]) -> dict[str, Any]:
    """Returns the types of the shared memory and barriers of a program."""
    copies = sum(each.copies for each in factors)
    return {
        "sides": factors,
        "loaded": plgpu.Barrier(num_arrivals=copies, num_barriers=config.stages),
        "read": plgpu.Barrier(num_barriers=config.stages),
        "made": plgpu.SMEM((config.rows, config.columns), dtype),
    }


def _sum_up(
    steps: Any,
    fill: Callable[..., None],
    multiply: Callable[..., None],
    write: Callable[[], None],
    memory: SimpleNamespace,
) -> None:
    """Loads and multiplies the tiles of `steps` steps, and writes the tile that they sum up to."""
    warpgroup, stages = jax.lax.axis_index("warpgroup"), memory.read.shape[0]
    lag = min(each.lag for each in memory.sides)  # products that are not awaited at each step
    filled = lambda step, slot: fill(step, slot, memory.loaded.at[slot])
    pl.when(warpgroup == _LOAD)(lambda: load_ahead(steps, filled, memory.read))

    def multiplied(acc):
        @pl.loop(0, steps)
        def _(step):
            slot = jax.lax.rem(step, stages)
            plgpu.barrier_wait(memory.loaded.at[slot])
            multiply(acc, slot, step)
            plgpu.wgmma_wait(lag)
            done = lambda: plgpu.barrier_arrive(memory.read.at[jax.lax.rem(step - lag, stages)])
            pl.when(step >= lag)(done)

        return acc[...]

    @pl.when(warpgroup == _MULTIPLY)
    def _():
        total = pl.run_scoped(multiplied, plgpu.WGMMAAccumulatorRef(memory.made.shape))
        memory.made[...] = total.astype(memory.made.dtype)
        plgpu.commit_smem()
        write()
        plgpu.wait_smem_to_gmem(0)
