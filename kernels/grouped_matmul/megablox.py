"""Grouped matmul on a TPU, by megablox of jax (Gale et al., 2022, arXiv:2211.15841).

A block of rows is visited once for every group in it, and an entry of the bank stays in fast memory
for all rows of its group if the contracted width is whole. The rows of choices are gathered before:
rows of a tiled array are not contiguous in memory, and fetching them one by one takes longer than
writing and reading a copy.
"""

import contextlib
import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .reference import Contracted, Rows
from .sizes import OfTpu, common


def matmul(
    rows: Rows,
    bank: Float[Array, "E X Y"],
    group_sizes: Int[Array, "E"],
    *,
    contracted: Contracted = 1,
    config: OfTpu,
    interpret: Any = False,
) -> Float[Array, "N M"]:
    """Returns the result of `reference.matmul`."""
    count, dtype = rows.shape[0], common(rows.array, bank)
    with _exact(dtype):
        y = _library().gmm(
            _whole(rows, dtype, config.rows),
            bank.astype(dtype),
            group_sizes.astype(jnp.int32),
            preferred_element_type=rows.array.dtype,
            tiling=dataclasses.astuple(config),
            transpose_rhs=contracted == 2,
            interpret=interpret,
        )
    return _cleared(y, group_sizes.sum(), config.rows)[:count]


def outer(
    left: Rows, right: Rows, group_sizes: Array, *, config: OfTpu, interpret: Any = False
) -> Array:
    """Returns the result of `reference.outer`."""
    dtype = common(left.array, right.array)
    with _exact(dtype):
        return _library().tgmm(
            _whole(left, dtype, config.rows).T,
            _whole(right, dtype, config.rows),
            group_sizes.astype(jnp.int32),
            preferred_element_type=jnp.float32,
            tiling=dataclasses.astuple(config),
            interpret=interpret,
        )


def _whole(rows: Rows, dtype: jnp.dtype, size: int) -> Array:
    """Returns rows with zeros after them, of no group, up to whole blocks."""
    return jnp.pad(rows.gathered().astype(dtype), ((0, -rows.shape[0] % size), (0, 0)))


def _cleared(y: Float[Array, "N M"], total: Array, size: int) -> Float[Array, "N M"]:
    """Returns rows of which those from `total` on are zero, in place and touching few others."""

    def clear(block: Array, y: Array) -> Array:
        start = block * size
        old = jax.lax.dynamic_slice_in_dim(y, start, size)
        new = jnp.where((start + jnp.arange(size) < total)[:, None], old, 0)
        return jax.lax.dynamic_update_slice_in_dim(y, new, start, 0)

    return jax.lax.fori_loop(total // size, y.shape[0] // size, clear, y)


def _exact(dtype: jnp.dtype) -> Any:
    """Returns a context in which a TPU multiplies float32 as such, and not in bfloat16."""
    is_single = dtype == jnp.float32
    return jax.default_matmul_precision("highest") if is_single else contextlib.nullcontext()


def _library() -> Any:
    try:
        return importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
    except ImportError:
        raise NotImplementedError(f"jax {jax.__version__} has no megablox") from None
