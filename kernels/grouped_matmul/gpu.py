"""Grouped matmul on an NVIDIA GPU: a program for each block of a group's rows and of columns.
Blocks are aligned to groups, so that none holds rows of two groups. The rows of choices are
gathered while they are loaded: a row is contiguous, and a program loads many at once.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from .reference import Contracted, blocks

_SIDE = 128  # rows and columns of a result: 128 x 128 in float32 are 128 registers of 128 threads
_CHUNK_BYTES = 128  # of the contracted width at a time: one cache line of a row
_PRODUCT = plgpu.CompilerParams(num_warps=4, num_stages=3)  # 96 KiB: two programs on an H100's core
_SUM = plgpu.CompilerParams(num_warps=4, num_stages=1)
_MOST_CHOICES = 64  # choices whose rows a program loads at once


def matmul(
    rows: Float[Array, "L D"],
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    take: Int[Array, "N"] | None = None,
    *,
    contracted: Contracted = 1,
    interpret: bool = False,
) -> Float[Array, "N M"]:
    """Returns the result of `reference.matmul`."""
    dtype, out_dtype = _common(rows, bank), rows.dtype
    count = rows.shape[0] if take is None else take.shape[0]
    inner, width = bank.shape[contracted], bank.shape[3 - contracted]
    if 0 in (count, inner, width):
        return jnp.zeros((count, width), out_dtype)
    size, across = _rows_of(count, bank.shape[0]), _side(width)
    # Rows of no group are treated as one more group.
    sizes = jnp.append(group_sizes, count - group_sizes.sum())
    tables = blocks(sizes, count, size)
    body = functools.partial(
        _matmul_body,
        size=size,
        across=across,
        chunk=_side(inner, _CHUNK_BYTES // dtype.itemsize),
        contracted=contracted,
    )
    return pl.pallas_call(
        body if take is None else functools.partial(_taking, body),
        grid=(tables[0].shape[0], pl.cdiv(width, across)),
        out_shape=jax.ShapeDtypeStruct((count, width), out_dtype),
        compiler_params=_PRODUCT,
        name="grouped_matmul",
        interpret=interpret,
    )(*tables, *(() if take is None else (take,)), rows.astype(dtype), bank.astype(dtype))


def _taking(body, group, start, stop, take, rows, bank, out):
    body(group, start, stop, rows, bank, out, take=take)


def _matmul_body(
    group, start, stop, rows, bank, out, *, size, across, chunk, contracted, take=None
):
    block, column = pl.program_id(0), pl.program_id(1) * across + jnp.arange(across)
    inner, width = bank.shape[contracted], bank.shape[3 - contracted]
    entry, first, end = group[block], start[block], stop[block]
    row = first + jnp.arange(size)
    # After the end any row may be read: its product is not stored.
    source = jnp.minimum(row, out.shape[0] - 1)
    source = source if take is None else take[source]
    is_column = None if width % across == 0 else column < width

    def step(i, total):
        k = i * chunk + jnp.arange(chunk)
        is_k = None if inner % chunk == 0 else k < inner
        a = _load(rows.at[source[:, None], k[None, :]], None, is_k)
        if contracted == 1:
            b = _load(bank.at[entry, k[:, None], column[None, :]], is_k, is_column)
        else:
            b = _load(bank.at[entry, column[:, None], k[None, :]], is_column, is_k)
        return total + _dot(a, b, trans_b=contracted == 2)

    zeros = jnp.zeros((size, across), jnp.float32)

    def write(y):
        mask = (row < end)[:, None] & (column < width)[None, :]
        plgpu.store(out.at[row[:, None], column[None, :]], y.astype(out.dtype), mask=mask)

    is_in_group = entry < bank.shape[0]
    product = lambda: jax.lax.fori_loop(0, pl.cdiv(inner, chunk), step, zeros)
    pl.when((first < end) & is_in_group)(lambda: write(product()))
    pl.when((first < end) & ~is_in_group)(lambda: write(zeros))


def outer(
    left: Float[Array, "L D"],
    right: Float[Array, "R M"],
    group_sizes: Int[Array, "E"],
    take_left: Int[Array, "N"] | None = None,
    take_right: Int[Array, "N"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "E D M"]:
    """Returns the result of `reference.outer`."""
    dtype = _common(left, right)
    count = left.shape[0] if take_left is None else take_left.shape[0]
    tall, wide, num_groups = left.shape[1], right.shape[1], group_sizes.shape[0]
    if 0 in (count, tall, wide, num_groups):
        return jnp.zeros((num_groups, tall, wide), jnp.float32)
    down, across = _side(tall), _side(wide)
    stop = jnp.cumsum(group_sizes)
    takes = {"take_left": take_left, "take_right": take_right}
    takes = {name: take for name, take in takes.items() if take is not None}
    body = functools.partial(
        _outer_body,
        names=tuple(takes),
        down=down,
        across=across,
        chunk=_CHUNK_BYTES // dtype.itemsize,
    )
    return pl.pallas_call(
        body,
        grid=(num_groups, pl.cdiv(tall, down), pl.cdiv(wide, across)),
        out_shape=jax.ShapeDtypeStruct((num_groups, tall, wide), jnp.float32),
        compiler_params=_PRODUCT,
        name="grouped_outer",
        interpret=interpret,
    )(stop - group_sizes, stop, left.astype(dtype), right.astype(dtype), *takes.values())


def _outer_body(start, stop, left, right, *rest, names, down, across, chunk):
    takes, out = dict(zip(names, rest, strict=False)), rest[-1]
    group = pl.program_id(0)
    first, end = start[group], stop[group]
    tall = pl.program_id(1) * down + jnp.arange(down)
    wide = pl.program_id(2) * across + jnp.arange(across)
    is_tall = None if out.shape[1] % down == 0 else tall < out.shape[1]
    is_wide = None if out.shape[2] % across == 0 else wide < out.shape[2]

    def step(i, total):
        row = first + i * chunk + jnp.arange(chunk)
        is_row = row < end
        of = lambda take: row if take is None else plgpu.load(take.at[row], mask=is_row, other=0)
        a = _load(left.at[of(takes.get("take_left"))[:, None], tall[None, :]], is_row, is_tall)
        b = _load(right.at[of(takes.get("take_right"))[:, None], wide[None, :]], is_row, is_wide)
        return total + _dot(a, b, trans_a=True)

    zeros = jnp.zeros((down, across), jnp.float32)
    total = jax.lax.fori_loop(0, pl.cdiv(end - first, chunk), step, zeros)
    mask = (tall < out.shape[1])[:, None] & (wide < out.shape[2])[None, :]
    plgpu.store(out.at[group, tall[:, None], wide[None, :]], total, mask=mask)


def combine(
    rows: Float[Array, "N M"],
    slots: Int[Array, "T k"],
    weights: Float[Array, "T k"],
    *,
    interpret: bool = False,
) -> Float[Array, "T M"]:
    """Returns the result of `reference.combine`, reading rows and writing sums once."""
    (count, k), width = slots.shape, rows.shape[1]
    if k > _MOST_CHOICES:
        raise NotImplementedError(f"sums at most {_MOST_CHOICES} rows of a token, not {k}")
    if 0 in (count, k, width):
        return jnp.zeros((count, width), rows.dtype)
    across = min(512, pl.next_power_of_2(width))
    size = 2048 // across  # tokens: 16 numbers of each row for each of 128 threads
    return pl.pallas_call(
        functools.partial(_combine_body, size=size, across=across),
        grid=(pl.cdiv(count, size), pl.cdiv(width, across)),
        out_shape=jax.ShapeDtypeStruct((count, width), rows.dtype),
        compiler_params=_SUM,
        name="grouped_combine",
        interpret=interpret,
    )(rows, slots, weights)


def _combine_body(rows, slots, weights, out, *, size, across):
    token = pl.program_id(0) * size + jnp.arange(size)
    column = pl.program_id(1) * across + jnp.arange(across)
    is_token, is_column = token < out.shape[0], column < out.shape[1]
    total = jnp.zeros((size, across), jnp.float32)
    for choice in range(slots.shape[1]):
        slot = plgpu.load(slots.at[token, choice], mask=is_token, other=0)
        weight = plgpu.load(weights.at[token, choice], mask=is_token, other=0)
        is_row = is_token & (slot < rows.shape[0])
        row = _load(rows.at[slot[:, None], column[None, :]], is_row, is_column)
        total += weight.astype(jnp.float32)[:, None] * row.astype(jnp.float32)
    mask = is_token[:, None] & is_column[None, :]
    plgpu.store(out.at[token[:, None], column[None, :]], total.astype(out.dtype), mask=mask)


def _common(a: Array, b: Array) -> jnp.dtype:
    dtype = jnp.promote_types(a.dtype, b.dtype)
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"multiplies float32, bfloat16 and float16, not {dtype}")
    return dtype


def _rows_of(count: int, num_groups: int) -> int:
    """Returns the rows of a block; half of the last block of each group is padding on average."""
    mean = count / num_groups
    return 128 if mean >= 512 else 64 if mean >= 128 else 32 if mean >= 32 else 16


def _side(width: int, most: int = _SIDE) -> int:
    return max(16, min(most, pl.next_power_of_2(width)))


def _load(ref, is_row, is_column):
    mask = None
    if is_row is not None:
        mask = jnp.broadcast_to(is_row[:, None], ref.shape)
    if is_column is not None:
        mask = is_column[None, :] if mask is None else mask & is_column[None, :]
        mask = jnp.broadcast_to(mask, ref.shape)
    return plgpu.load(ref, mask=mask, other=None if mask is None else 0)


def _dot(a, b, trans_a=False, trans_b=False):
    precision = "highest" if a.dtype == jnp.float32 else None
    return plgpu.dot(a, b, trans_a, trans_b, precision=precision)
