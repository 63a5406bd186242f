"""Chunked cross-entropy: the logits of a chunk of tokens alone are in memory at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from recursia import sharding

Head = dict[str, Array]  # `matrix` [V D] of the output layer, and its `bias` [V] if it has one
# From logits [B C V], arrays that all chunks share and arrays of this chunk: the loss of each token
# [B C], and a function that returns the gradient of that loss towards the logits.
TokenLoss = Callable[[Array, Any, Any], tuple[Array, Callable[[], Array]]]


def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Head,
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Returns the weighted sum of the tokens' cross-entropy, and that of each token, in nats.

    Args:
      hidden: normalised hidden states, in the compute dtype.
      head: float32 `matrix` [V D] of the output layer, and its `bias` [V] if it has one.
      targets: the next token of each token.
      weights: of each token's loss.
      chunk: tokens of each sequence whose logits are in memory at a time.
    """
    return chunked_loss(_cross_entropy, hidden, head, None, targets, weights, chunk)


def token_nats(
    hidden: Float[Array, "B T D"],
    head: Head,
    targets: Int[Array, "B T"],
    chunk: int,
) -> Float[Array, "B T"]:
    """Returns the cross-entropy of each token, in nats; the arguments are `cross_entropy`'s."""
    return _token_losses(_cross_entropy, hidden, head, None, targets, chunk)


def _cross_entropy(logits: Array, _: None, targets: Array) -> tuple[Array, Callable[[], Array]]:
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    error = lambda: jax.nn.softmax(logits) - jax.nn.one_hot(targets, logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - picked, error


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 6))
def chunked_loss(
    token_loss: TokenLoss,
    hidden: Float[Array, "B T D"],
    head: Head,
    common: Any,
    own: Any,
    weights: Float[Array, "B T"],
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Returns the weighted sum of the tokens' losses, and the loss of each token.

    Differentiated, it computes each chunk's gradient together with its logits: three products with
    the head in all, and no logits computed again. The head's gradient is summed in float32. No
    gradient goes through the losses of single tokens, `common` or `own`.

    Args:
      token_loss: of the logits of a chunk.
      hidden: see `cross_entropy`.
      head: see `cross_entropy`.
      common: arrays that `token_loss` takes for every chunk.
      own: arrays [B T ...] of which `token_loss` takes the chunk.
      weights: see `cross_entropy`.
      chunk: see `cross_entropy`.
    """
    losses = _token_losses(token_loss, hidden, head, common, own, chunk)
    return jnp.sum(weights * losses), losses


def _token_losses(
    token_loss: TokenLoss, hidden: Array, head: Head, common: Any, own: Any, chunk: int
) -> Array:
    head = cast(head, hidden.dtype)
    step = lambda _, xs: (None, token_loss(logits(xs[0], head), common, xs[1])[0])
    return _join(jax.lax.scan(step, None, _split(chunk, (hidden, own)))[1], hidden.shape[1])


def _forward(
    token_loss: TokenLoss,
    hidden: Array,
    head: Head,
    common: Any,
    own: Any,
    weights: Array,
    chunk: int,
):
    head = cast(head, hidden.dtype)

    def step(head_grad: Head, xs: tuple[Array, Any, Array]):
        h, own, weight = xs
        scores = logits(h, head)
        losses, error = token_loss(scores, common, own)
        error = weight[..., None] * error()
        added = {}
        if "cap" in head:
            error, added["cap"] = error * (1 - (scores / head["cap"]) ** 2), jnp.zeros(())
        if "bias" in head:
            added["bias"] = error.sum((0, 1))
        error = error.astype(h.dtype)
        added["matrix"] = jnp.einsum(
            "...v,...d->vd", _rows(error), _rows(h), preferred_element_type=jnp.float32
        )
        head_grad = jax.tree.map(jnp.add, head_grad, added)
        hidden_grad = (_rows(error) @ head["matrix"]).reshape(h.shape)
        return head_grad, (losses, hidden_grad)

    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), head)
    chunks = _split(chunk, (hidden, own, weights))
    head_grad, by_chunk = jax.lax.scan(step, zeros, chunks)
    losses, hidden_grad = (_join(each, hidden.shape[1]) for each in by_chunk)
    return (jnp.sum(weights * losses), losses), (hidden_grad, head_grad, losses)


def _backward(
    token_loss: TokenLoss,
    chunk: int,
    saved: tuple[Array, Head, Array],
    grads: tuple[Array, Array],
):
    hidden_grad, head_grad, losses = saved
    scale = grads[0]
    head_grad = jax.tree.map(lambda grad: scale * grad, head_grad)
    return scale.astype(hidden_grad.dtype) * hidden_grad, head_grad, None, None, scale * losses


chunked_loss.defvjp(_forward, _backward)


def cast(head: Head, dtype: DTypeLike) -> Head:
    """Returns the head with its matrix in the compute dtype."""
    return {**head, "matrix": head["matrix"].astype(dtype)}


def logits(hidden: Float[Array, "B C D"], head: Head) -> Float[Array, "B C V"]:
    """Returns float32 logits; the head's matrix is in the compute dtype."""
    matrix = head["matrix"]
    scores = jnp.einsum("...d,vd->...v", _rows(hidden), matrix, preferred_element_type=jnp.float32)
    scores = scores.reshape(*hidden.shape[:-1], -1)
    scores = scores + head["bias"] if "bias" in head else scores
    return head["cap"] * jnp.tanh(scores / head["cap"]) if "cap" in head else scores


def _rows(x: Array) -> Array:
    """Returns [B C D] as [B*C D], unless tokens are sharded by position: see `linear.dot`."""
    return x if sharding.is_split("length") else x.reshape(-1, x.shape[-1])


def _split(chunk: int, tree: Any) -> Any:
    """Returns arrays [B T ...] as chunks of tokens [N B C ...], the last padded with zeros.

    Where a sequence is sharded over devices, a chunk has as many tokens of each shard, so that no
    tokens are sent between devices.
    """
    batch, length = jax.tree.leaves(tree)[0].shape[:2]
    shards = sharding.ways("length")
    size = max(1, min(chunk, length) // shards)  # of a chunk, in each shard
    pad = -length % (size * shards)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2)) if pad else x
        x = jnp.moveaxis(x.reshape(batch, shards, -1, size, *x.shape[2:]), 2, 0)
        return x.reshape(-1, batch, shards * size, *x.shape[4:])

    return jax.tree.map(split, tree)


def _join(chunks: Array, length: int) -> Array:
    """Inverts `_split`."""
    shards, (number, batch) = sharding.ways("length"), chunks.shape[:2]
    x = jnp.moveaxis(chunks.reshape(number, batch, shards, -1, *chunks.shape[3:]), 0, 2)
    return x.reshape(batch, -1, *x.shape[4:])[:, :length]
