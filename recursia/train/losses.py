"""Cross-entropy whose logits never exist for more than a chunk of the tokens."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
) -> Float[Array, ""]:
    """Returns the weighted sum of each token's cross-entropy, in nats.

    Differentiated, it makes each chunk's gradient while its logits are there: three products with
    the head in all, and nothing computed again. The head's gradient sums in float32.

    Args:
      hidden: normalised hidden states, in the compute dtype.
      head: float32 weight of the output layer.
      targets: the next token of each.
      weights: of each token's loss.
      chunk: tokens of each sequence whose logits exist at a time.
    """
    return jnp.sum(weights * token_nats(hidden, head, targets, chunk))


def token_nats(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    chunk: int,
) -> Float[Array, "B T"]:
    """Returns the cross-entropy of each token, in nats; the arguments are `cross_entropy`'s."""
    matrix = head.astype(hidden.dtype)
    step = lambda _, part: (None, _nats(_logits(part[0], matrix), part[1]))
    return _join(jax.lax.scan(step, None, _split(chunk, hidden, targets))[1], targets.shape[1])


def _forward(hidden: Array, head: Array, targets: Array, weights: Array, chunk: int):
    matrix = head.astype(hidden.dtype)

    def step(head_grad: Array, part: tuple[Array, Array, Array]):
        h, target, weight = part
        logits = _logits(h, matrix)
        error = jax.nn.softmax(logits) - jax.nn.one_hot(target, matrix.shape[0])
        error = (weight[..., None] * error).astype(h.dtype)
        rows = lambda x: x.reshape(-1, x.shape[-1])
        head_grad += jnp.einsum(
            "zv,zd->vd", rows(error), rows(h), preferred_element_type=jnp.float32
        )
        return head_grad, (_nats(logits, target), jnp.einsum("btv,vd->btd", error, matrix))

    start = jnp.zeros(head.shape, jnp.float32)
    head_grad, (nats, hidden_grad) = jax.lax.scan(
        step, start, _split(chunk, hidden, targets, weights)
    )
    nats, hidden_grad = (_join(part, targets.shape[1]) for part in (nats, hidden_grad))
    return jnp.sum(weights * nats), (hidden_grad, head_grad, nats)


def _backward(chunk: int, saved: tuple[Array, Array, Array], scale: Array):
    hidden_grad, head_grad, nats = saved
    return scale.astype(hidden_grad.dtype) * hidden_grad, scale * head_grad, None, scale * nats


cross_entropy.defvjp(_forward, _backward)


def _logits(hidden: Array, matrix: Array) -> Float[Array, "B C V"]:
    return jnp.einsum("btd,vd->btv", hidden, matrix, preferred_element_type=jnp.float32)


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
