"""Grouped matmul by megablox of jax, which divides the contracted width, on a TPU.

Its blocks need widths that are multiples of 128. Rows are filled up with zeros of no group.
"""

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .reference import Contracted
from .tpu import common


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a block: rows, contracted width, and columns."""

    rows: int
    inner: int
    columns: int


def matmul(
    rows: Float[Array, "L D"],
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    take: Int[Array, "N"] | None = None,
    *,
    contracted: Contracted = 1,
    config: Config | None = None,
    interpret: bool = False,
) -> Float[Array, "N M"]:
    """Returns the result of `reference.matmul`, by megablox of jax."""
    config = config or sizes(rows, bank, group_sizes, take, contracted=contracted)
    rows = rows if take is None else rows[take]
    count, dtype = rows.shape[0], common(rows, bank)
    y = _library().gmm(
        _whole(rows.astype(dtype), config.rows),
        bank.astype(dtype),
        group_sizes.astype(jnp.int32),
        preferred_element_type=rows.dtype,
        tiling=dataclasses.astuple(config),
        transpose_rhs=contracted == 2,
        interpret=interpret,
    )[:count]
    return jnp.where((jnp.arange(count) < group_sizes.sum())[:, None], y, 0)


def outer(
    left: Float[Array, "L D"],
    right: Float[Array, "R M"],
    group_sizes: Int[Array, "E"],
    take_left: Int[Array, "N"] | None = None,
    take_right: Int[Array, "N"] | None = None,
    *,
    config: Config | None = None,
    interpret: bool = False,
) -> Float[Array, "E D M"]:
    """Returns the result of `reference.outer`, by megablox of jax."""
    config = config or sizes(left, right, group_sizes, take_left)
    dtype = common(left, right)
    left, right = (
        _whole((a if take is None else a[take]).astype(dtype), config.rows)
        for a, take in ((left, take_left), (right, take_right))
    )
    return _library().tgmm(
        left.T,
        right,
        group_sizes.astype(jnp.int32),
        preferred_element_type=jnp.float32,
        tiling=dataclasses.astuple(config),
        interpret=interpret,
    )


def sizes(
    a: Array, b: Array, group_sizes: Array, take: Any = None, *__: Any, contracted: Contracted = 1
) -> Config:
    """Returns the computed sizes of megablox: 341 FLOPs for each byte of bfloat16 that it loads."""
    common(a, b)
    _library()
    inner, width = a.shape[1], b.shape[b.ndim - contracted]
    if not a.shape[0] or inner % 128 or width % 128:
        raise NotImplementedError(f"megablox takes multiples of 128, not widths {inner}, {width}")
    count = (a if take is None else take).shape[0]
    rows = 512 if count > 512 else 128
    return Config(rows, min(inner, 1024), min(width, 1024))


def _whole(rows: Array, size: int) -> Array:
    """Returns rows with zeros after them, of no group, up to whole blocks."""
    return jnp.pad(rows, ((0, -rows.shape[0] % size), (0, 0)))


def _library() -> Any:
    try:
        return importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
    except ImportError:
        raise NotImplementedError(f"jax {jax.__version__} has no megablox") from None
