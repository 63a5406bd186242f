"""Selects tokens: the top-k of each row, or those above a threshold. There is no gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..dispatch import Implementation, Op
from . import gpu, reference, tpu

SELECT = Op(
    "select_tokens",
    reference.select,
    (
        Implementation("pallas_tpu", "tpu", tpu.select),
        Implementation("pallas_triton", "cuda", gpu.select),
    ),
    flops=lambda scores, k: 0,
)
# One comparison and one sum, which every compiler fuses into one pass over the scores.
ABOVE = Op("select_above", reference.above, (), flops=lambda scores, threshold: 0)


def select_tokens(
    scores: Float[Array, "B T"], k: int, *, backend: str = "auto"
) -> Int[Array, "B k"]:
    """Returns the places of the top-k scores of each row, ascending, in int32.

    Of equal scores the earlier place is taken. Zeros of both signs are equal; NaN of either sign is
    above infinity.

    Args:
      scores: real numbers; they get no gradient.
      k: tokens to keep, from 0 to T.
      backend: "auto" takes the kernel on TPU and GPU and the reference elsewhere.

    Raises:
      ValueError: if a row has fewer than k scores.
    """
    _check("select_tokens", scores)
    batch, length = scores.shape
    if not 0 <= k <= length:
        raise ValueError(f"select_tokens: k must be from 0 to {length} scores of a row, got {k}.")
    if batch == 0 or k in (0, length):
        return jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32), (batch, k))
    return SELECT(jax.lax.stop_gradient(scores), backend=backend, k=k)


def select_above(
    scores: Float[Array, "B T"], threshold: Float[Array, "*B"] | float, *, backend: str = "auto"
) -> tuple[Bool[Array, "B T"], Int[Array, "B"]]:
    """Returns which scores reach a threshold, and their number in each row, in int32.

    Each token is selected by its own score alone, so the selection is causal. NaN reaches none.

    Args:
      scores: real numbers; they get no gradient.
      threshold: one for all rows, or one for each row.
      backend: "auto" or "reference"; XLA fuses the reference into one pass, as a kernel would be.

    Raises:
      ValueError: if thresholds and rows differ in number.
    """
    _check("select_above", scores)
    threshold = jnp.asarray(threshold, scores.dtype)
    if threshold.shape not in ((), scores.shape[:1]):
        raise ValueError(
            f"select_above: scores have {scores.shape[0]} rows but threshold has shape "
            f"{threshold.shape}; give one, or one for each row."
        )
    stop = jax.lax.stop_gradient
    return ABOVE(stop(scores), stop(threshold), backend=backend)


def _check(who: str, scores: Array) -> None:
    if scores.ndim != 2 or not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(
            f"{who}: scores must be real numbers of shape [B T], got {scores.dtype} of shape "
            f"{scores.shape}."
        )
