"""Losses of each token whose logits never exist for more than a chunk of the tokens."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recursia import sharding

# From logits [B C V], what all tokens share and what belongs to these: what each token is charged
# [B C], and a function that gives the gradient of that towards its logits.
Charge = Callable[[Array, Any, Any], tuple[Array, Callable[[], Array]]]


def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: dict[str, Array],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Returns the weighted sum of each token's cross-entropy, and each one's, in nats.

    Args:
      hidden: normalised hidden states, in the compute dtype.
      head: float32 `matrix` [V D] of the output layer, and its `bias` [V] if it has one.
      targets: the next token of each.
      weights: of each token's loss.
      chunk: tokens of each sequence whose logits exist at a time.
    """
    return charged(_cross_entropy, hidden, head, None, targets, weights, chunk)


def token_nats(
    hidden: Float[Array, "B T D"],
    head: dict[str, Array],
    targets: Int[Array, "B T"],
    chunk: int,
) -> Float[Array, "B T"]:
    """Returns the cross-entropy of each token, in nats; the arguments are `cross_entropy`'s."""
    return _each(_cross_entropy, hidden, head, None, targets, chunk)


def _cross_entropy(logits: Array, _: None, targets: Array) -> tuple[Array, Callable[[], Array]]:
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    error = lambda: jax.nn.softmax(logits) - jax.nn.one_hot(targets, logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - picked, error


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 6))
def charged(
    charge: Charge,
    hidden: Float[Array, "B T D"],
    head: dict[str, Array],
    common: Any,
    own: Any,
    weights: Float[Array, "B T"],
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Returns the weighted sum of what each token's logits are charged, and each one's charge.

    Differentiated, it makes each chunk's gradient while its logits are there: three products with
    the head in all, and nothing computed again. The head's gradient sums in float32. No gradient
    goes through the single charges, `common` or `own`.

    Args:
      charge: what a token's logits cost.
      hidden: as `cross_entropy` takes them, as are `head`, `weights` and `chunk`.
      head: see there.
      common: arrays that `charge` takes whole.
      own: arrays [B T ...] of which it takes a chunk.
      weights: see there.
      chunk: see there.
    """
    each = _each(charge, hidden, head, common, own, chunk)
    return jnp.sum(weights * each), each


def _each(charge: Charge, hidden: Array, head: Any, common: Any, own: Any, chunk: int) -> Array:
    head = cast(head, hidden.dtype)
    step = lambda _, part: (None, charge(logits(part[0], head), common, part[1])[0])
    return _join(jax.lax.scan(step, None, _split(chunk, (hidden, own)))[1], hidden.shape[1])


def _forward(
    charge: Charge, hidden: Array, head: Any, common: Any, own: Any, weights: Array, chunk: int
):
    head = cast(head, hidden.dtype)

    def step(head_grad: dict[str, Array], part: tuple[Array, Any, Array]):
        h, here, weight = part
        scores = logits(h, head)
        each, error = charge(scores, common, here)
        error = weight[..., None] * error()
        more = {}
        if "cap" in head:
            error, more["cap"] = error * (1 - (scores / head["cap"]) ** 2), jnp.zeros(())
        if "bias" in head:
            more["bias"] = error.sum((0, 1))
        error = error.astype(h.dtype)
        more["matrix"] = jnp.einsum("btv,btd->vd", error, h, preferred_element_type=jnp.float32)
        head_grad = jax.tree.map(jnp.add, head_grad, more)
        towards = jnp.einsum("btv,vd->btd", error, head["matrix"])
        return head_grad, (each, towards)

    start = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), head)
    parts = _split(chunk, (hidden, own, weights))
    head_grad, (each, hidden_grad) = jax.lax.scan(step, start, parts)
    each, hidden_grad = (_join(part, hidden.shape[1]) for part in (each, hidden_grad))
    return (jnp.sum(weights * each), each), (hidden_grad, head_grad, each)


def _backward(charge: Charge, chunk: int, saved: Any, grads: tuple[Array, Array]):
    hidden_grad, head_grad, each = saved
    scale = grads[0]
    head_grad = jax.tree.map(lambda grad: scale * grad, head_grad)
    return scale.astype(hidden_grad.dtype) * hidden_grad, head_grad, None, None, scale * each


charged.defvjp(_forward, _backward)


def cast(head: dict[str, Array], dtype: Any) -> dict[str, Array]:
    """Returns the head with its matrix in the compute dtype."""
    return {**head, "matrix": head["matrix"].astype(dtype)}


def logits(hidden: Float[Array, "B C D"], head: dict[str, Array]) -> Float[Array, "B C V"]:
    """Returns float32 logits; the head's matrix is in the compute dtype."""
    matrix = head["matrix"]
    found = jnp.einsum("btd,vd->btv", hidden, matrix, preferred_element_type=jnp.float32)
    found = found + head["bias"] if "bias" in head else found
    return head["cap"] * jnp.tanh(found / head["cap"]) if "cap" in head else found


def _split(chunk: int, tree: Any) -> Any:
    """Returns arrays [B T ...] as chunks of tokens [N B C ...], the last padded with zeros.

    Where devices hold parts of a sequence, a chunk has as many tokens of each: none has to travel.
    """
    batch, length = jax.tree.leaves(tree)[0].shape[:2]
    parts = sharding.ways("length")
    each = max(1, min(chunk, length) // parts)
    pad = -length % (each * parts)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2)) if pad else x
        x = jnp.moveaxis(x.reshape(batch, parts, -1, each, *x.shape[2:]), 2, 0)
        return x.reshape(-1, batch, parts * each, *x.shape[4:])

    return jax.tree.map(split, tree)


def _join(chunks: Array, length: int) -> Array:
    """Undoes `_split`."""
    parts, (number, batch) = sharding.ways("length"), chunks.shape[:2]
    x = jnp.moveaxis(chunks.reshape(number, batch, parts, -1, *chunks.shape[3:]), 0, 2)
    return x.reshape(batch, -1, *x.shape[4:])[:, :length]
