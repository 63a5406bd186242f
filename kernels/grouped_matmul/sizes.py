"""Sizes of the blocks of grouped products, computed from shapes; no kernel is imported for them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .reference import Contracted, Rows

LANES = 128  # of a TPU
_BLOCK_BYTES = 1 << 20  # of rows; of each array two are in fast memory, 16 MiB in all
_ENTRY_BYTES = 2 << 20  # of a bank's block, and of a float32 result's
_DIVIDED = 4096  # contracted width from which it is divided
_PART = 1024  # of a divided axis: 341 FLOPs for each byte of rows and entries that is loaded


@dataclasses.dataclass(frozen=True)
class OfTpu:
    """Sizes of a block: rows, and the two other axes as megablox takes them.

    Of a product, the contracted width and columns; of a sum over rows, its two sides.
    """

    rows: int
    inner: int
    columns: int


@dataclasses.dataclass(frozen=True)
class OfGpu:
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
    piece: int = 25 << 20  # half of the L2 cache of an H100


def of_tpu_matmul(
    rows: Rows, bank: Array, group_sizes: Array, *, contracted: Contracted = 1
) -> OfTpu:
    """Returns the sizes of a product of rows and entries."""
    (count, inner), item = rows.shape, common(rows.array, bank).itemsize
    inner = inner if inner < _DIVIDED else _PART
    size = _size(count // bank.shape[0], inner * item)
    columns = min(_ENTRY_BYTES // (inner * item), _ENTRY_BYTES // (4 * size))
    return OfTpu(size, inner, _tile(bank.shape[3 - contracted], columns))


def of_tpu_outer(left: Rows, right: Rows, group_sizes: Array) -> OfTpu:
    """Returns the sizes of a sum over rows."""
    (count, tall), item = left.shape, common(left.array, right.array).itemsize
    across = _tile(right.shape[1], _PART)
    down = _tile(tall, min(_PART, _ENTRY_BYTES // (4 * max(across, LANES))))
    return OfTpu(_size(count // group_sizes.shape[0], max(down, across) * item), down, across)


def of_gpu_matmul(
    rows: Rows, bank: Array, group_sizes: Array, *, contracted: Contracted = 1
) -> OfGpu:
    """Returns the sizes of a product: half of a group's last block is empty on average."""
    return OfGpu(rows=128 if rows.shape[0] >= 256 * bank.shape[0] else 64)


def of_gpu_outer(*_: Any) -> OfGpu:
    """Returns the sizes of a sum over rows."""
    return OfGpu()


def common(a: Array, b: Array) -> jnp.dtype:
    """Returns the dtype in which two arrays are multiplied."""
    dtype = jnp.promote_types(a.dtype, b.dtype)
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"multiplies float32 and bfloat16, not {dtype}")
    return dtype


def _size(count: int, row_bytes: int) -> int:
    """Returns the rows of a block: more than half of a group's last block is seldom empty."""
    return next(
        (size for size in (512, 256) if size * row_bytes <= _BLOCK_BYTES and count >= 2 * size),
        LANES,
    )


def _tile(width: int, most: int) -> int:
    return width if width <= most else max(1, most // LANES) * LANES
