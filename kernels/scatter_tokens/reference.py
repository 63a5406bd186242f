"""Defines the result of scatter and of its gradient."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..gather_tokens.reference import gather


def scatter(
    y: Float[Array, "B T D"] | None,
    index: Int[Array, "B C"],
    update: Float[Array, "B C D"],
    gate: Float[Array, "B C"] | None,
    *,
    length: int,
    is_sorted: bool,
) -> Float[Array, "B T D"]:
    """Returns `y`, or zeros of `length` rows, with `gate * update` added at `index` in float32."""
    rows = update.astype(jnp.float32)
    if gate is not None:
        rows = gate.astype(jnp.float32)[..., None] * rows
    batch, _, width = update.shape
    at = (y.astype(jnp.float32) if y is not None else jnp.zeros((batch, length, width))).at
    out = at[jnp.arange(batch)[:, None], index].add(
        rows, mode="promise_in_bounds", indices_are_sorted=is_sorted
    )
    return out.astype(update.dtype if y is None else y.dtype)


def collect(
    cotangent: Float[Array, "B T D"],
    index: Int[Array, "B C"],
    update: Float[Array, "B C D"],
    gate: Float[Array, "B C"],
) -> tuple[Float[Array, "B C D"], Float[Array, "B C"]]:
    """Returns the gradients of `update`, in its dtype, and of `gate`, in float32."""
    rows = gather(cotangent, index).astype(jnp.float32)
    to_update = (gate.astype(jnp.float32)[..., None] * rows).astype(update.dtype)
    return to_update, jnp.sum(rows * update.astype(jnp.float32), axis=-1)
