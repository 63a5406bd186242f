"""Load balancing losses of experts, and the router statistics that they are computed from.

Every statistic is a sum over tokens: those of several uses of one bank, such as recursions, are
added leaf by leaf before a loss is computed from them.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from recursia import batch
from recursia.layers.attention import Places
from recursia.params import Leaf


@struct.dataclass
class Usage:
    """Router statistics: float32 sums over the tokens of a sequence, by head `N` if routed by head.

    "Probability" is the softmax of the logits, whatever score the router chose by. Where each token
    is reported by itself there is no sum: the places of a row [T] follow its batch axis.
    """

    tokens: Leaf  # [B *N] number of tokens
    taken: Leaf  # [B *N E] tokens that chose the expert, those beyond its capacity included
    probability: Leaf  # [B *N E]
    entropy: Leaf  # [B *N] of each token's own probabilities, in nats
    square: Leaf  # [B *N] of the log-sum-exp of the logits


def usage(
    logits: Float[Array, "B T *N E"],
    index: Int[Array, "B T *N k"],
    is_counted: Bool[Array, "B T"] | None = None,
    places: Places | None = None,
) -> Usage:
    """Returns the statistics of one use of a router.

    Args:
      logits: of each expert, in float32.
      index: the experts that each token took.
      is_counted: the tokens to sum over, such as those neither padding nor halted; None is all.
      places: of the tokens, to report each by itself, zeros where there is none; None sums.
    """

    def total(values: Array) -> Array:
        if places is not None:
            return apart(values, is_counted, places)
        return values.sum(1, where=None if is_counted is None else _along(is_counted, values))

    p = jax.nn.softmax(logits)
    taken = (index[..., None] == jnp.arange(logits.shape[-1])).sum(-2, dtype=jnp.float32)
    return Usage(
        tokens=total(jnp.ones(logits.shape[:-1])),
        taken=total(taken),
        probability=total(p),
        entropy=total(_entropy(p)),
        square=total(jax.nn.logsumexp(logits, -1) ** 2),
    )


def apart(
    values: Shaped[Array, "B C ..."], is_counted: Bool[Array, "B C"] | None, places: Places
) -> Shaped[Array, "B T ..."]:
    """Returns the values of tokens at their places in the row, zeros where there is none.

    Args:
      values: of the tokens.
      is_counted: the tokens that have any; None is all.
      places: of the tokens.
    """
    values = values if is_counted is None else jnp.where(_along(is_counted, values), values, 0)
    empty = jnp.zeros((len(values), places.length, *values.shape[2:]), values.dtype)
    return empty.at[jnp.arange(len(values))[:, None], places.index].add(values)


def sequence_loss(usage: Usage) -> Float[Array, ""]:
    """Returns minus the entropy of a sequence's mean probabilities, a mean over sequences.

    From -log E where a sequence uses all experts equally, to 0 where it uses one: MoEUT's
    regulariser (arXiv 2405.16039). The mean is over heads too; a row of padding is left out.
    """
    entropy = _entropy(_mean(usage.probability, usage.tokens))
    return -batch.mean(entropy, tuple(range(entropy.ndim)), usage.tokens > 0)


def information(usage: Usage) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the entropy H(e|x) of an expert given its token, and H(e) over all tokens, in nats.

    Their mutual information, which the Sparse Universal Transformer maximises (arXiv 2310.07096),
    is the second minus the first. Both are means over heads.
    """
    sums = _batch_sums(usage)
    conditional = _mean(sums.entropy, sums.tokens)
    marginal = _entropy(_mean(sums.probability, sums.tokens))
    return conditional.mean(), marginal.mean()


def switch_loss(usage: Usage) -> Float[Array, ""]:
    """Returns E times the sum over experts of the share of choices times the mean probability.

    The load balancing loss of the Switch Transformer (Fedus et al. 2021, arXiv 2101.03961): 1 where
    all experts are used equally. With top-k above 1 the share is that of all k choices. The mean is
    over heads too.
    """
    sums = _batch_sums(usage)
    share = _mean(sums.taken, sums.taken.sum(-1))
    product = share * _mean(sums.probability, sums.tokens)
    return share.shape[-1] * product.sum(-1).mean()


def sequence_switch_loss(usage: Usage) -> Float[Array, ""]:
    """Returns `switch_loss` of each sequence by itself, a mean over sequences and heads.

    As in DeepSeek-V2 (DeepSeek-AI 2024, arXiv 2405.04434); a row of padding is left out.
    """
    share = _mean(usage.taken, usage.taken.sum(-1))
    product = (share * _mean(usage.probability, usage.tokens)).sum(-1)
    axes = tuple(range(product.ndim))
    return share.shape[-1] * batch.mean(product, axes, usage.tokens > 0)


def unevenness(usage: Usage, over: Literal["batch", "sequence"]) -> Float[Array, "U"]:
    """Returns `switch_loss` or `sequence_switch_loss` of each router, along the leading axis."""
    return jax.vmap(switch_loss if over == "batch" else sequence_switch_loss)(usage)


def z_loss(usage: Usage) -> Float[Array, ""]:
    """Returns the mean squared log-sum-exp of the logits (Zoph et al. 2022, arXiv 2202.08906)."""
    sums = _batch_sums(usage)
    return _mean(sums.square, sums.tokens).mean()


def shares(taken: Float[Array, "U B *N E"]) -> Float[Array, "U E"]:
    """Returns each expert's share of the choices of a batch, for each entry of a router's bank."""
    entries, experts = len(taken), taken.shape[-1]
    counts = batch.total(taken.reshape(entries, -1, experts).sum(1))
    return counts / jnp.maximum(counts.sum(-1, keepdims=True), 1.0)


def evened(
    bias: Float[Array, "*U E"], share: Float[Array, "*U E"], rate: float
) -> Float[Array, "*U E"]:
    """Returns biases raised or lowered by `rate` towards an equal share (arXiv 2408.15664)."""
    return bias + rate * jnp.sign(share.mean(-1, keepdims=True) - share)


def evenness(usage: Usage) -> Float[Array, ""]:
    """Returns the effective number of experts over E: the exponential of the entropy of their use.

    1 where a batch uses all experts equally; a mean over routers and heads.
    """
    taken = batch.total(usage.taken.sum(1))
    share = taken / jnp.maximum(taken.sum(-1, keepdims=True), 1.0)
    return jnp.exp(jax.scipy.special.entr(share).sum(-1)).mean() / share.shape[-1]


def _along(is_counted: Array, values: Array) -> Array:
    return is_counted.reshape(is_counted.shape + (1,) * (values.ndim - 2))


def _batch_sums(usage: Usage) -> Usage:
    return jax.tree.map(lambda leaf: batch.total(leaf.sum(0)), usage)


def _mean(total: Array, count: Array) -> Array:
    """Returns a mean; of no tokens it is 0."""
    count = jnp.maximum(count, 1.0)
    return total / (count[..., None] if total.ndim > count.ndim else count)


def _entropy(p: Array) -> Array:
    """Returns the entropy over the last axis; its gradient is finite where a probability is 0."""
    return -(p * jnp.log(jnp.where(p > 0, p, 1.0))).sum(-1)
