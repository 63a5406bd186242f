"""A subset of a row's tokens: top-k selection, gather, and gated scatter.

XLA's own sort, gather and scatter serve. Indices ascend and no two are alike, so that rows move in
any order without atomics, and the result is the same bit for bit in every run.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from recursia.depth.routing import Gating, update
from recursia.layers.branch import States
from recursia.sharding import constrain, is_split, locally


def select(scores: Float[Array, "B T"], count: int, parts: int = 1) -> Int[Array, "B C"]:
    """Returns the indices of the `count` highest scores, ascending; ties go to the earlier.

    Zeros of both signs are equal; NaN of either sign is above infinity. There is no gradient.

    Args:
      scores: of the active tokens.
      count: number of tokens that go on.
      parts: equal parts of a row, each of which keeps the same number of its tokens; 1 compares the
        scores of a whole row, with an all-gather where devices hold parts of it.
    """
    length, each = scores.shape[1] // parts, count // parts

    def run(scores: Array) -> Array:
        in_part = _highest(scores.reshape(-1, length), each)
        first = length * jnp.arange(scores.shape[1] // length)[:, None]
        index = in_part.reshape(scores.shape[0], -1, each) + first
        return _first(scores, parts) + index.reshape(scores.shape[0], -1)

    names = ("batch", _tokens(parts))
    return locally(run, (jax.lax.stop_gradient(scores),), (names,), names)


def _highest(scores: Float[Array, "B T"], count: int) -> Int[Array, "B C"]:
    scores = jnp.where(scores == 0, 0.0, scores)
    scores = jnp.where(scores != scores, jnp.nan, scores)
    return jnp.sort(jax.lax.top_k(scores, count)[1], axis=-1)


def _tokens(parts: int) -> str | None:
    """Returns the logical axis of tokens if they stay on their device, or None."""
    return "length" if is_split("length", parts) else None


def _first(x: Array, parts: int) -> int | Array:
    """Returns the index in the row of the first token that this device holds."""
    return x.shape[1] * jax.lax.axis_index("context") if is_split("length", parts, True) else 0


def pick(x: Array, index: Int[Array, "B C"] | None) -> Array:
    """Returns the entries of `x` [B T] at `index`; None is all of them."""
    return x if index is None else _rows(x, index)


def spread(x: Array, index: Int[Array, "B C"] | None, base: Array) -> Array:
    """Returns `base` [B T] with the entries of `x` [B C] at `index`; None is all of them."""
    return x if index is None else _set(base, index, x)


def take(x: States, index: Int[Array, "B C"] | None, parts: int = 1) -> Float[Array, "B C D"]:
    """Returns the states of the tokens at `index`, a gather by parts; None is all of them."""
    if index is None:
        return x
    names = ("batch", _tokens(parts), None), ("batch", "length")
    run = lambda x, index: _rows(x, index - _first(x, parts))
    return locally(run, (x, index), names, ("batch", "length", None))


def put(
    x: States,
    index: Int[Array, "B C"] | None,
    y: Float[Array, "B C D"],
    gate: Float[Array, "B C"],
    gating: Gating,
    parts: int = 1,
    is_live: Bool[Array, "B C"] | None = None,
) -> States:
    """Returns all states after a recursion from those at `index`, ascending, to `y`: a scatter.

    Other states, and those of tokens that are not live, stay the same bit for bit.
    """
    if index is None:
        new = update(x, y, gate, gating)
        return new if is_live is None else jnp.where(is_live[..., None], new, x)
    if is_live is not None:
        unchanged = take(x, index, parts) if gating in ("delta", "replace") else jnp.zeros_like(y)
        y = jnp.where(is_live[..., None], y, unchanged)
    states = "batch", _tokens(parts), None
    names = states, states[:2], states, states[:2]
    if gating == "replace":
        run = lambda x, index, y: _set(x, index - _first(x, parts), y)
        x = locally(run, (x, index, y), names[:3], states)
    else:
        added = y - take(x, index, parts) if gating == "delta" else y
        run = lambda x, index, *rest: _add(x, index - _first(x, parts), *rest)
        scale = None if gating == "additive" else gate
        x = locally(run, (x, index, added, scale), names, states)
    return constrain(x, ("batch", "length", None))


_ORDER = {"mode": "promise_in_bounds", "unique_indices": True, "indices_are_sorted": True}


def _rows(x: Array, index: Int[Array, "B C"]) -> Array:
    """Returns the entries of `x` [B T ...] at `index`."""
    return jax.vmap(lambda x, index: x.at[index].get(**_ORDER))(x, index)


@jax.custom_vjp
def _set(x: Array, index: Int[Array, "B C"], rows: Array) -> Array:
    """Returns `x` [B T ...] with other entries [B C ...] at `index`."""
    return jax.vmap(lambda x, index, rows: x.at[index].set(rows, **_ORDER))(x, index, rows)


def _pull(index: Array, grad: Array) -> tuple[Array, None, Array]:
    moved = _rows(grad, index)
    return _set(grad, index, jnp.zeros_like(moved)), None, moved


_set.defvjp(lambda x, index, rows: (_set(x, index, rows), index), _pull)


@jax.custom_vjp
def _add(
    x: Float[Array, "B T D"],
    index: Int[Array, "B C"],
    rows: Float[Array, "B C D"],
    scale: Float[Array, "B C"] | None,
) -> Float[Array, "B T D"]:
    """Returns `x` with `scale * rows` added at `index` in float32, rounded once."""
    added = rows.astype(jnp.float32)
    added = added if scale is None else scale[..., None] * added
    new = _rows(x, index).astype(jnp.float32) + added
    return _set(x, index, new.astype(x.dtype))


def _forward(x: Array, index: Array, rows: Array, scale: Array | None) -> tuple[Array, Any]:
    # Without a scale the gradient of the rows needs only their dtype.
    kept = jnp.zeros(0, rows.dtype) if scale is None else rows
    return _add(x, index, rows, scale), (index, kept, scale)


def _backward(kept: Any, grad: Array) -> tuple[Array, None, Array, Array | None]:
    index, rows, scale = kept
    moved = _rows(grad, index)
    if scale is None:
        return grad, None, moved.astype(rows.dtype), None
    moved = moved.astype(jnp.float32)
    towards_scale = jnp.sum(moved * rows.astype(jnp.float32), -1).astype(scale.dtype)
    return grad, None, (scale[..., None] * moved).astype(rows.dtype), towards_scale


_add.defvjp(_forward, _backward)
