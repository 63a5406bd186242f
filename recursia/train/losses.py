"""Cross-entropy whose logits never exist for more than a chunk of the tokens."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: dict[str, Array],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Returns the weighted sum of each token's cross-entropy, and each one's, in nats.

    Differentiated, it makes each chunk's gradient while its logits are there: three products with
    the head in all, and nothing computed again. The head's gradient sums in float32. No gradient
    goes through the single cross-entropies.

    Args:
      hidden: normalised hidden states, in the compute dtype.
      head: float32 `matrix` [V D] of the output layer, and its `bias` [V] if it has one.
      targets: the next token of each.
      weights: of each token's loss.
      chunk: tokens of each sequence whose logits exist at a time.
    """
    nats = token_nats(hidden, head, targets, chunk)
    return jnp.sum(weights * nats), nats


def token_nats(
    hidden: Float[Array, "B T D"],
    head: dict[str, Array],
    targets: Int[Array, "B T"],
    chunk: int,
) -> Float[Array, "B T"]:
    """Returns the cross-entropy of each token, in nats; the arguments are `cross_entropy`'s."""
    head = _cast(head, hidden.dtype)
    step = lambda _, part: (None, _nats(_logits(part[0], head), part[1]))
    return _join(jax.lax.scan(step, None, _split(chunk, hidden, targets))[1], targets.shape[1])


def _forward(hidden: Array, head: dict[str, Array], targets: Array, weights: Array, chunk: int):
    head = _cast(head, hidden.dtype)

    def step(head_grad: dict[str, Array], part: tuple[Array, Array, Array]):
        h, target, weight = part
        logits = _logits(h, head)
        error = jax.nn.softmax(logits) - jax.nn.one_hot(target, logits.shape[-1])
        error = weight[..., None] * error
        more = {"bias": error.sum((0, 1))} if "bias" in head else {}
        error = error.astype(h.dtype)
        rows = lambda x: x.reshape(-1, x.shape[-1])
        more["matrix"] = jnp.einsum(
            "zv,zd->vd", rows(error), rows(h), preferred_element_type=jnp.float32
        )
        head_grad = jax.tree.map(jnp.add, head_grad, more)
        towards = jnp.einsum("btv,vd->btd", error, head["matrix"])
        return head_grad, (_nats(logits, target), towards)

    start = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), head)
    head_grad, (nats, hidden_grad) = jax.lax.scan(
        step, start, _split(chunk, hidden, targets, weights)
    )
    nats, hidden_grad = (_join(part, targets.shape[1]) for part in (nats, hidden_grad))
    return (jnp.sum(weights * nats), nats), (hidden_grad, head_grad, nats)


def _backward(chunk: int, saved: Any, grads: tuple[Array, Array]):
    hidden_grad, head_grad, nats = saved
    scale = grads[0]
    head_grad = jax.tree.map(lambda grad: scale * grad, head_grad)
    return scale.astype(hidden_grad.dtype) * hidden_grad, head_grad, None, scale * nats


cross_entropy.defvjp(_forward, _backward)


def _cast(head: dict[str, Array], dtype: Any) -> dict[str, Array]:
    """Returns the head with its matrix in the compute dtype."""
    return {**head, "matrix": head["matrix"].astype(dtype)}


def _logits(hidden: Array, head: dict[str, Array]) -> Float[Array, "B C V"]:
    matrix = head["matrix"]
    logits = jnp.einsum("btd,vd->btv", hidden, matrix, preferred_element_type=jnp.float32)
    return logits + head["bias"] if "bias" in head else logits


def _nats(logits: Float[Array, "B C V"], targets: Int[Array, "B C"]) -> Float[Array, "B C"]:
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def _split(chunk: int, *arrays: Array) -> tuple[Array, ...]:
    """Returns arrays [B T ...] as chunks of tokens [N B C ...], the last padded with zeros."""
    batch, length = arrays[0].shape[:2]
    chunk = min(chunk, length)
    pad = -length % chunk

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2)) if pad else x
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)

    return tuple(map(split, arrays))


def _join(chunks: Array, length: int) -> Array:
    """Undoes `_split`."""
    x = jnp.moveaxis(chunks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
