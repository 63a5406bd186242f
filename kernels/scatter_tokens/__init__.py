"""Scatters routed tokens back into the sequence: `y[index] += gate * update`, and its gradient."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..dispatch import Implementation, Op
from ..gather_tokens import GATHER
from . import gpu, reference, tpu

SCATTER = Op(
    "scatter_tokens",
    reference.scatter,
    (
        Implementation("pallas_tpu", "tpu", tpu.scatter),
        Implementation("pallas_triton", "cuda", gpu.scatter),
    ),
    flops=lambda *arrays, **static: 0,
)
# The gradients of the update and of its gate, in one pass over the rows that both need.
COLLECT = Op(
    "scatter_tokens_collect",
    reference.collect,
    (
        Implementation("pallas_tpu", "tpu", tpu.collect),
        Implementation("pallas_triton", "cuda", gpu.collect),
    ),
    flops=lambda *arrays: 0,
)


def scatter_tokens(
    y: Float[Array, "B T D"],
    index: Int[Array, "B C"],
    update: Float[Array, "B C D"],
    gate: Float[Array, "B C"] | None = None,
    *,
    is_sorted: bool = False,
    backend: str = "auto",
) -> Float[Array, "B T D"]:
    """Returns `y` with `y[b, index[b, c]] += gate[b, c] * update[b, c]`.

    Products and sums of one place are in float32, in the order of c, and rounded once.

    Args:
      y: rows of a sequence.
      index: places in [0, T), in any order, repeats allowed.
      update: the rows to add.
      gate: factor of each row; None is 1.
      is_sorted: promises that every row of `index` ascends, so that a GPU need not sort; results
        there are wrong if one does not.
      backend: "auto" takes the kernel on TPU and GPU and the reference elsewhere.

    Raises:
      ValueError: if shapes do not match.
    """
    if y.ndim != 3 or index.ndim != 2 or y.shape[0] != index.shape[0]:
        raise ValueError(
            f"scatter_tokens: y must be [B T D] and index [B C], got {y.shape} and {index.shape}."
        )
    if update.shape != (*index.shape, y.shape[2]):
        raise ValueError(
            f"scatter_tokens: update must be {(*index.shape, y.shape[2])}, got {update.shape}."
        )
    if gate is not None and gate.shape != index.shape:
        raise ValueError(f"scatter_tokens: gate must be {index.shape}, got {gate.shape}.")
    if update.size and not y.size:
        raise ValueError(f"scatter_tokens: y has 0 rows but index has {index.shape[1]} places.")
    if not update.size:
        return y
    return _scatter(y, index.astype(jnp.int32), update, gate, is_sorted, backend)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _scatter(y, index, update, gate, is_sorted, backend):
    static = {"length": y.shape[1], "is_sorted": is_sorted}
    return SCATTER(y, index, update, gate, backend=backend, **static)


def _forward(y, index, update, gate, is_sorted, backend):
    # Without a gate the update's gradient needs only its dtype.
    kept = jnp.zeros(0, update.dtype) if gate is None else update
    return _scatter(y, index, update, gate, is_sorted, backend), (index, kept, gate)


def _backward(is_sorted, backend, kept, cotangent):
    index, update, gate = kept
    if gate is None:
        rows = GATHER(cotangent, index, backend=backend)
        return cotangent, None, rows.astype(update.dtype), None
    rows, to_gate = COLLECT(cotangent, index, update, gate, backend=backend)
    return cotangent, None, rows, to_gate.astype(gate.dtype)


_scatter.defvjp(_forward, _backward)
