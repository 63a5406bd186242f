"""Which tokens go on: the k best of each row, or those that reach a threshold. No gradient."""

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
    """Returns the places of the k best scores of each row, ascending, in int32.

    Ties go to the earlier place. Zeros of both signs tie; NaN is above infinity, whatever its sign.

    Args:
      scores: any real numbers. They get no gradient from this.
      k: tokens to keep, from 0 to T.
      backend: "auto" takes the kernel on TPU and GPU and the reference elsewhere.

    Raises:
      ValueError: if there are not k scores in a row.
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
    """Returns which scores reach a threshold, and how many of each row, in int32.

    Each token is chosen by its own score alone, so no token looks ahead. NaN never reaches.

    Args:
      scores: any real numbers. They get no gradient from this.
      threshold: one for all, or one for each row.
      backend: "auto" or "reference", which compilers make the one pass that a kernel would be.

    Raises:
      ValueError: if the thresholds are not as many as the rows.
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
