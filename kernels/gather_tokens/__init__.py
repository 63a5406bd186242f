"""Gathers the routed tokens of a sequence; `scatter_tokens` is its transpose."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..dispatch import Implementation, Op
from . import gpu, reference, tpu

GATHER = Op(
    "gather_tokens",
    reference.gather,
    (
        Implementation("pallas_tpu", "tpu", tpu.gather),
        Implementation("pallas_triton", "cuda", gpu.gather),
    ),
    flops=lambda x, index: 0,
)


def gather_tokens(
    x: Float[Array, "B T D"],
    index: Int[Array, "B C"],
    *,
    is_sorted: bool = False,
    backend: str = "auto",
) -> Float[Array, "B C D"]:
    """Returns the rows of `x` at `index`, bit for bit.

    The gradient sums the rows of each place in float32 and rounds once.

    Args:
      x: rows of a sequence.
      index: places in [0, T), in any order, repeats allowed.
      is_sorted: promises that every row of `index` ascends, so that the gradient need not sort on a
        GPU; results there are wrong if one does not.
      backend: "auto" takes the kernel on TPU and GPU and the reference elsewhere.

    Raises:
      ValueError: if shapes do not match.
    """
    if x.ndim != 3 or index.ndim != 2 or x.shape[0] != index.shape[0]:
        raise ValueError(
            f"gather_tokens: x must be [B T D] and index [B C], got {x.shape} and {index.shape}."
        )
    if index.size and not x.shape[1]:
        raise ValueError(f"gather_tokens: x has 0 rows but index has {index.shape[1]} places.")
    if not x.size or not index.size:
        return jnp.zeros((*index.shape, x.shape[2]), x.dtype)
    return _gather(x, index.astype(jnp.int32), x.shape[1], is_sorted, backend)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _gather(x, index, length, is_sorted, backend):
    return GATHER(x, index, backend=backend)


def _forward(x, index, length, is_sorted, backend):
    return _gather(x, index, length, is_sorted, backend), index


def _backward(length, is_sorted, backend, index, rows):
    from ..scatter_tokens import SCATTER  # not at the top: each module imports the other

    static = {"length": length, "is_sorted": is_sorted}
    return SCATTER(None, index, rows, None, backend=backend, **static), None


_gather.defvjp(_forward, _backward)
