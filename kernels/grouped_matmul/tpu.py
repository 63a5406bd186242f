"""Grouped matmul on a TPU: blocks of rows, each visited once for every group in it.
Tables of the visits are prefetched to scalar memory, so that the next rows and the next entry of
the bank load while the current visit multiplies. An entry stays in VMEM for all visits of its
group, and rows for all groups of their block. The contracted width is not divided.

The tokens of choices are gathered before: rows of a tiled array are not contiguous in memory, and
fetching them one by one takes longer than writing and reading a copy.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from .reference import Contracted

_ROWS = 512  # of a block: of width 1024, 1 MiB, which takes longer to load than a step's overhead
_PART = 128  # rows of a part of a block shared by groups; fewer would not keep the MXU busy
_BLOCK_BYTES = 1 << 20  # of rows; of each array two are in fast memory, 16 MiB in all
_ENTRY_BYTES = 2 << 20  # of a bank's block, and of a float32 result's
_WIDEST = 32 << 10  # bytes of a row, for a bank's block of 128 columns to take 4 MiB


def matmul(
    rows: Float[Array, "L D"],
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    take: Int[Array, "N"] | None = None,
    *,
    contracted: Contracted = 1,
    interpret: Any = False,
) -> Float[Array, "N M"]:
    """Returns the result of `reference.matmul`."""
    dtype = _common(rows, bank)
    rows, out_dtype = rows if take is None else rows[take], rows.dtype
    count, inner = rows.shape
    width, item = bank.shape[3 - contracted], dtype.itemsize
    if 0 in (count, inner, width):
        return jnp.zeros((count, width), out_dtype)
    if inner * item > _WIDEST:
        raise NotImplementedError(f"a row takes {inner * item} bytes, more than {_WIDEST}")
    size = _size(count, inner * item)
    tile = _tile(width, min(_ENTRY_BYTES // (inner * item), _ENTRY_BYTES // (4 * size)))
    # Rows of no group are one more group, which loads neither rows nor an entry of its own.
    in_groups = group_sizes.sum()
    group, block, *bounds = _visits(
        jnp.append(group_sizes, count - in_groups), count, size, of_empty=0
    )
    read = jnp.minimum(block, jnp.maximum(in_groups - 1, 0) // size)
    tables = group, block, *bounds, read
    own = lambda group, v: jnp.minimum(group[v], bank.shape[0] - 1)
    if contracted == 1:
        entry = pl.BlockSpec((None, inner, tile), lambda m, v, group, *_: (own(group, v), 0, m))
    else:
        entry = pl.BlockSpec((None, tile, inner), lambda m, v, group, *_: (own(group, v), m, 0))
    body = functools.partial(
        _matmul_body, size=size, num_groups=bank.shape[0], contracted=contracted
    )
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=(pl.cdiv(width, tile), tables[0].shape[0]),
            in_specs=[
                pl.BlockSpec((size, inner), lambda m, v, *tables: (tables[-1][v], 0)),
                entry,
            ],
            out_specs=pl.BlockSpec((size, tile), lambda m, v, _, block, *__: (block[v], m)),
        ),
        out_shape=jax.ShapeDtypeStruct((count, width), out_dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=_cost(count, inner, width, rows, bank, out_dtype),
        name="grouped_matmul",
        interpret=interpret,
    )(*tables, rows.astype(dtype), bank.astype(dtype))


def _matmul_body(group, block, start, stop, _, rows, entry, out, *, size, num_groups, contracted):
    visit = pl.program_id(1)
    first = block[visit] * size
    begin, end = start[visit] - first, stop[visit] - first
    is_in_group = group[visit] < num_groups
    dot = functools.partial(_dot, axes=(1, contracted - 1))

    def write(product):
        @pl.when((begin <= 0) & (end >= size))
        def _():
            out[...] = product(pl.ds(0, size)).astype(out.dtype)

        def part(at):
            # The other rows belong to the groups before or after.
            y = jnp.where(_is_in(at, begin, end), product(at), out[at, :].astype(jnp.float32))
            out[at, :] = y.astype(out.dtype)

        _parts(part, begin, end, size)

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
    interpret: Any = False,
) -> Float[Array, "E D M"]:
    """Returns the result of `reference.outer`."""
    dtype = _common(left, right)
    left = left if take_left is None else left[take_left]
    right = right if take_right is None else right[take_right]
    (count, tall), wide, num_groups = left.shape, right.shape[1], group_sizes.shape[0]
    if 0 in (count, tall, wide):
        return jnp.zeros((num_groups, tall, wide), jnp.float32)
    across = _tile(wide, 1024)
    down = _tile(tall, _ENTRY_BYTES // (4 * max(across, 128)))
    size = _size(count, max(down, across) * dtype.itemsize)
    tables = _visits(group_sizes, count, size, of_empty=1)
    return pl.pallas_call(
        functools.partial(_outer_body, size=size),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=(pl.cdiv(tall, down), pl.cdiv(wide, across), tables[0].shape[0]),
            in_specs=[
                pl.BlockSpec((size, down), lambda d, m, v, _, block, *__: (block[v], d)),
                pl.BlockSpec((size, across), lambda d, m, v, _, block, *__: (block[v], m)),
            ],
            out_specs=pl.BlockSpec(
                (None, down, across), lambda d, m, v, group, *_: (group[v], d, m)
            ),
        ),
        out_shape=jax.ShapeDtypeStruct((num_groups, tall, wide), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(count, tall, wide, left, right, jnp.float32, num_groups * tall * wide),
        name="grouped_outer",
        interpret=interpret,
    )(*tables, left.astype(dtype), right.astype(dtype))


def _outer_body(group, block, start, stop, left, right, out, *, size):
    visit = pl.program_id(2)
    first = block[visit] * size
    begin, end = start[visit] - first, stop[visit] - first
    dot = functools.partial(_dot, axes=(0, 0))

    @pl.when((visit == 0) | (group[visit] != group[jnp.maximum(visit - 1, 0)]))
    def _():
        out[...] = jnp.zeros_like(out)

    @pl.when((begin <= 0) & (end >= size))
    def _():
        out[...] += dot(left[...], right[...])

    def part(at):
        mask = lambda a: jnp.where(_is_in(at, begin, end), a[at, :].astype(jnp.float32), 0)
        out[...] += dot(mask(left).astype(left.dtype), mask(right).astype(right.dtype))

    _parts(part, begin, end, size)


def megablox_matmul(
    rows: Float[Array, "L D"],
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    take: Int[Array, "N"] | None = None,
    *,
    contracted: Contracted = 1,
    interpret: bool = False,
) -> Float[Array, "N M"]:
    """Returns the result of `reference.matmul`, by megablox of jax."""
    rows = rows if take is None else rows[take]
    tiling = _megablox_tiling(rows, bank, bank.shape[contracted], bank.shape[3 - contracted])
    y = _megablox().gmm(
        rows,
        bank,
        group_sizes.astype(jnp.int32),
        preferred_element_type=rows.dtype,
        tiling=tiling,
        transpose_rhs=contracted == 2,
        interpret=interpret,
    )
    return jnp.where((jnp.arange(rows.shape[0]) < group_sizes.sum())[:, None], y, 0)


def megablox_outer(
    left: Float[Array, "L D"],
    right: Float[Array, "R M"],
    group_sizes: Int[Array, "E"],
    take_left: Int[Array, "N"] | None = None,
    take_right: Int[Array, "N"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "E D M"]:
    """Returns the result of `reference.outer`, by megablox of jax."""
    left = left if take_left is None else left[take_left]
    right = right if take_right is None else right[take_right]
    tiling = _megablox_tiling(left, right, left.shape[1], right.shape[1])
    sizes = group_sizes.astype(jnp.int32)
    return _megablox().tgmm(
        left.T, right, sizes, preferred_element_type=jnp.float32, tiling=tiling, interpret=interpret
    )


def _megablox() -> Any:
    try:
        return importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
    except ImportError:
        raise NotImplementedError(f"jax {jax.__version__} has no megablox") from None


def _megablox_tiling(a: Array, b: Array, inner: int, width: int) -> tuple[int, int, int]:
    if _common(a, b) != a.dtype or a.dtype != b.dtype:
        raise NotImplementedError(f"megablox takes one dtype, not {a.dtype} and {b.dtype}")
    if not a.shape[0] or a.shape[0] % _PART:
        raise NotImplementedError(f"megablox takes multiples of {_PART} rows, not {a.shape[0]}")
    if inner % 128 or width % 128:
        raise NotImplementedError(f"megablox takes multiples of 128, not widths {inner}, {width}")
    rows = _ROWS if a.shape[0] % _ROWS == 0 else _PART
    return rows, min(inner, 1024), min(width, 1024)


def _common(a: Array, b: Array) -> jnp.dtype:
    dtype = jnp.promote_types(a.dtype, b.dtype)
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"multiplies float32 and bfloat16, not {dtype}")
    return dtype


def _size(count: int, row_bytes: int) -> int:
    if count < _PART:
        return count
    return min(_ROWS, max(1, min(count, _BLOCK_BYTES // row_bytes) // _PART) * _PART)


def _tile(width: int, most: int) -> int:
    return width if width <= most else max(1, most // 128) * 128


def _visits(group_sizes: Array, count: int, size: int, of_empty: int) -> tuple[Array, ...]:
    """Returns each visit's group and block, and the group's first row and end.

    Visits of one group are adjacent, and so are those of one block. Unused visits repeat the last
    group and block and have no rows.

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
    visit = jnp.minimum(number, behind[-1] - 1)
    group = (behind <= visit[:, None]).sum(1)
    block = start[group] // size + visit - (behind - needed)[group]
    rows_of = lambda bound: jnp.where(number == visit, bound[group], 0)
    return group, jnp.minimum(block, num_blocks - 1), rows_of(start), rows_of(stop)


def _parts(part: Any, begin: Array, end: Array, size: int) -> None:
    """Runs `part` on the parts of a block with rows from `begin` to `end`, unless all have."""
    step = min(_PART, size)
    first = jax.lax.div(jnp.maximum(begin, 0), step)
    last = jax.lax.div(jnp.minimum(end, size) + step - 1, step)

    @pl.when((begin > 0) | (end < size))
    def _():
        if size == step:
            pl.when(first < last)(lambda: part(pl.ds(0, size)))
        else:
            at = lambda i: pl.ds(pl.multiple_of(i * step, step), step)
            jax.lax.fori_loop(first, last, lambda i, _: part(at(i)), None)


def _is_in(at: Any, begin: Array, end: Array) -> Array:
    row = at.start + jax.lax.broadcasted_iota(jnp.int32, (at.size, 1), 0)
    return (row >= begin) & (row < end)


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
