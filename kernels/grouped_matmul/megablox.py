"""Grouped matmul by megablox of jax, which divides the contracted width, on a TPU.

Its blocks need widths that are multiples of 128. Rows are filled up with zeros of no group.
"""

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .reference import Contracted, Rows
from .tpu import common


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a block: rows, contracted width, and columns."""

    rows: int
    inner: int
    columns: int


def matmul(
    rows: Rows,
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    *,
    contracted: Contracted = 1,
    config: Config,
    interpret: bool = False,
) -> Float[Array, "N M"]:
    """Returns the result of `reference.matmul`."""
    count, dtype = rows.shape[0], common(rows.array, bank)
    y = _library().gmm(
        _whole(rows, dtype, config.rows),
        bank.astype(dtype),
        group_sizes.astype(jnp.int32),
        preferred_element_type=rows.array.dtype,
        tiling=dataclasses.astuple(config),
        transpose_rhs=contracted == 2,
        interpret=interpret,
    )[:count]
    return jnp.where((jnp.arange(count) < group_sizes.sum())[:, None], y, 0)


def outer(
    left: Rows,
    right: Rows,
    group_sizes: Int[Array, "E"],
    *,
    config: Config,
    interpret: bool = False,
) -> Float[Array, "E D M"]:
    """Returns the result of `reference.outer`."""
    dtype = common(left.array, right.array)
    return _library().tgmm(
        _whole(left, dtype, config.rows).T,
        _whole(right, dtype, config.rows),
        group_sizes.astype(jnp.int32),
        preferred_element_type=jnp.float32,
        tiling=dataclasses.astuple(config),
        interpret=interpret,
    )


def matmul_config(
    rows: Rows, bank: Array, group_sizes: Array, *, contracted: Contracted = 1
) -> Config:
    """Returns the computed sizes of `matmul`."""
    common(rows.array, bank)
    return _sizes(*rows.shape, bank.shape[3 - contracted])


def outer_config(left: Rows, right: Rows, group_sizes: Array) -> Config:
    """Returns the computed sizes of `outer`."""
    common(left.array, right.array)
    return _sizes(*left.shape, right.shape[1])


def _sizes(count: int, inner: int, width: int) -> Config:
    """Returns sizes for 341 FLOPs to each byte of bfloat16 that megablox loads."""
    _library()
    if inner % 128 or width % 128:
        raise NotImplementedError(f"megablox takes multiples of 128, not widths {inner}, {width}")
    return Config(512 if count > 512 else 128, min(inner, 1024), min(width, 1024))


def _whole(rows: Rows, dtype: jnp.dtype, size: int) -> Array:
    """Returns rows with zeros after them, of no group, up to whole blocks."""
    return jnp.pad(rows.gathered().astype(dtype), ((0, -rows.shape[0] % size), (0, 0)))


def _library() -> Any:
    try:
        return importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
    except ImportError:
        raise NotImplementedError(f"jax {jax.__version__} has no megablox") from None
