"""How evenly tokens use experts, and the losses that even it out.

Every statistic is a sum over tokens: uses of one bank, by several recursions or by parts of a
sequence, add up leaf by leaf before a loss is made of them.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from recursia import batch
from recursia.params import Leaf


@struct.dataclass
class Usage:
    """Float32 sums over the tokens of each sequence, by head `N` where experts are chosen by head.

    "Probability" is the softmax of the logits, whatever score the choice was made by.
    """

    tokens: Leaf  # [B *N] how many
    taken: Leaf  # [B *N E] how many took the expert, places beyond its capacity included
    probability: Leaf  # [B *N E]
    entropy: Leaf  # [B *N] of each token's own probabilities, in nats
    square: Leaf  # [B *N] of the log-sum-exp of the logits


def usage(
    logits: Float[Array, "B T *N E"],
    index: Int[Array, "B T *N k"],
    is_counted: Bool[Array, "B T"] | None = None,
) -> Usage:
    """Returns the sums of one use; of two uses of a bank they are `jax.tree.map(jnp.add, a, b)`.

    Args:
      logits: of each expert, in float32.
      index: the experts that tokens took.
      is_counted: the tokens to sum over, say those not padding nor halted; None is all.
    """

    def total(values: Array) -> Array:
        if is_counted is None:
            return values.sum(1)
        return values.sum(1, where=is_counted.reshape(is_counted.shape + (1,) * (values.ndim - 2)))

    p = jax.nn.softmax(logits)
    taken = (index[..., None] == jnp.arange(logits.shape[-1])).sum(-2, dtype=jnp.float32)
    return Usage(
        tokens=total(jnp.ones(logits.shape[:-1])),
        taken=total(taken),
        probability=total(p),
        entropy=total(_entropy(p)),
        square=total(jax.nn.logsumexp(logits, -1) ** 2),
    )


def sequence_loss(usage: Usage) -> Float[Array, ""]:
    """Returns minus the entropy of a sequence's mean probabilities, a mean over sequences.

    From -log E where a sequence uses all experts alike, to 0 where it uses one: MoEUT's regulariser
    (arXiv 2405.16039). Heads are averaged; a row of nothing but padding is no sequence.
    """
    entropy = _entropy(_mean(usage.probability, usage.tokens))
    return -batch.mean(entropy, tuple(range(entropy.ndim)), usage.tokens > 0)


def information(usage: Usage) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the entropy H(e|x) of an expert given its token, and H(e) over all tokens, in nats.

    The mutual information that the Sparse Universal Transformer maximises (arXiv 2310.07096) is the
    second minus the first. Heads are averaged.
    """
    whole = _whole(usage)
    conditional = _mean(whole.entropy, whole.tokens)
    marginal = _entropy(_mean(whole.probability, whole.tokens))
    return conditional.mean(), marginal.mean()


def switch_loss(usage: Usage) -> Float[Array, ""]:
    """Returns E times the sum over experts of the share taken times the mean probability.

    At least 1 where both agree, and 1 where all experts are used alike: Fedus et al. 2021 (arXiv
    2101.03961), with the share of all places where a token takes several. Heads are averaged.
    """
    whole = _whole(usage)
    share = _mean(whole.taken, whole.taken.sum(-1))
    product = share * _mean(whole.probability, whole.tokens)
    return share.shape[-1] * product.sum(-1).mean()


def z_loss(usage: Usage) -> Float[Array, ""]:
    """Returns the mean squared log-sum-exp of the logits (Zoph et al. 2022, arXiv 2202.08906)."""
    whole = _whole(usage)
    return _mean(whole.square, whole.tokens).mean()


def evenness(usage: Usage) -> Float[Array, ""]:
    """Returns the share of experts that would, all used alike, have the entropy of what was taken.

    1 where a batch takes all experts alike; a mean over routers and heads.
    """
    taken = batch.total(usage.taken.sum(1))
    share = taken / jnp.maximum(taken.sum(-1, keepdims=True), 1.0)
    return jnp.exp(jax.scipy.special.entr(share).sum(-1)).mean() / share.shape[-1]


def _whole(usage: Usage) -> Usage:
    """Returns the sums over a batch."""
    return jax.tree.map(lambda leaf: batch.total(leaf.sum(0)), usage)


def _mean(total: Array, count: Array) -> Array:
    """Returns a mean, of no tokens 0."""
    count = jnp.maximum(count, 1.0)
    return total / (count[..., None] if total.ndim > count.ndim else count)


def _entropy(p: Array) -> Array:
    """Returns the entropy over the last axis; its gradient is finite where a probability is 0."""
    return -(p * jnp.log(jnp.where(p > 0, p, 1.0))).sum(-1)
