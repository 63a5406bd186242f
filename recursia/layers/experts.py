"""Mixture-of-experts products: top-k choice, capacity, and grouped matrix multiplication.

Used by the sigma-MoE and SwitchHead of MoEUT (Csordás et al. 2024, arXiv 2405.16039), the experts
and attention of the Sparse Universal Transformer (Tan et al. 2023, arXiv 2310.07096) and WideNet
(Xue et al. 2021, arXiv 2107.11817). A bank holds one entry for each expert. Tokens are sorted by
expert and multiplied group by group. No token is dropped unless `limit` is called.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from recursia import batch
from recursia.kernels.grouped_matmul import (
    Groups,
    combine,
    combine_matmul,
    dispatch,
    dispatch_matmul,
    group_choices,
    grouped_matmul,
    of_each,
)
from recursia.params import Initializer, Leaf
from recursia.sharding import locally

PEERS = "expert"  # the mesh axis along which devices hold different experts


@struct.dataclass
class Choice:
    """The experts that each token takes, highest score first."""

    index: Leaf  # [... k] of the expert
    weight: Leaf  # [... k] float32, the factor of the expert's output


def choose(
    logits: Float[Array, "*B E"],
    k: int,
    *,
    score: Literal["sigmoid", "softmax"],
    is_renormalised: bool,
    bias: Float[Array, "E"] | None = None,
) -> Choice:
    """Returns each token's top-k experts by score; ties go to the lower index.

    Gradients reach the logits through the weights alone.

    Args:
      logits: of each expert, in float32.
      k: experts for each token.
      score: the sigmoid of each logit, or the softmax over experts.
      is_renormalised: whether a token's weights are divided by their sum (plus 1e-6).
      bias: added to the scores by which experts are chosen, and to no weight.

    Raises:
      ValueError: if there are fewer than `k` experts.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k: got {k}, takes 1 to {logits.shape[-1]}, the number of experts")
    scores = jax.nn.sigmoid(logits) if score == "sigmoid" else jax.nn.softmax(logits)
    if bias is None:
        weight, index = jax.lax.top_k(scores, k)
    else:
        index = jax.lax.top_k(jax.lax.stop_gradient(scores + bias), k)[1]
        weight = jnp.take_along_axis(scores, index, axis=-1)
    if is_renormalised:
        weight /= weight.sum(-1, keepdims=True) + 1e-6
    return Choice(index, weight)


def limit(
    choice: Choice,
    num_experts: int,
    capacity: float | Fraction | None,
    is_live: Bool[Array, "B T"] | None = None,
) -> Choice:
    """Returns a choice in which no expert exceeds its capacity in a sequence.

    Earlier tokens come first, so that no token depends on a later one; but the capacity depends on
    the length of the sequence. A token beyond an expert's capacity has weight zero there.

    Args:
      choice: of tokens [B T k].
      num_experts: experts that were chosen among.
      capacity: an expert's most tokens over its mean number of tokens, `k T / E`, rounded up to a
        whole token. None is no bound.
      is_live: the tokens that count in T and in an expert's load, those that are not padding; None
        is all.

    Raises:
      ValueError: if the capacity is not positive.
    """
    if capacity is None:
        return choice
    if not 0 < capacity < math.inf:
        raise ValueError(f"capacity: got {capacity}, takes a positive number")
    batch, length, k = choice.index.shape
    # In decimals: of 20 places times 1.1, a float would make 23.
    shares = (Fraction(str(capacity)) * k * n / num_experts for n in range(length + 1))
    places = np.array([math.ceil(share) for share in shares], np.int32)
    index = choice.index
    if is_live is None:
        places = places[-1]
    else:
        places = jnp.array(places)[is_live.sum(1)][:, None, None]
        index = jnp.where(is_live[..., None], index, num_experts)  # sorted behind live tokens
    order = jnp.argsort(index.reshape(batch, -1), axis=-1, stable=True)
    experts = jnp.take_along_axis(index.reshape(batch, -1), order, axis=-1)
    order_of_entry = jnp.arange(length * k)
    is_first = jnp.diff(experts, axis=-1, prepend=-1) > 0
    first = jax.lax.cummax(jnp.where(is_first, order_of_entry, 0), axis=1)
    rank = order_of_entry - first
    rank = jnp.take_along_axis(rank, jnp.argsort(order, axis=-1), axis=-1)
    is_in = rank.reshape(choice.index.shape) < places
    return dataclasses.replace(choice, weight=jnp.where(is_in, choice.weight, 0.0))


def equal_norms(std: float, is_by_expert: bool) -> Initializer:
    """Returns an initializer of a router [D ...] whose columns have about equal norms.

    No expert is then favoured at the start.

    Args:
      std: standard deviation of the normal draw that columns are scaled from.
      is_by_expert: whether each column keeps the sample standard deviation of its own draw, or all
        take that of the whole draw.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        drawn = std * jax.random.normal(key, shape, dtype)
        unit = drawn / jnp.linalg.norm(drawn, axis=0, keepdims=True)
        spread = drawn.std(0 if is_by_expert else None, ddof=1, keepdims=True)
        return unit * spread / unit.std(ddof=1)

    return init


def by_head(choice: Choice, num_experts: int) -> Choice:
    """Returns a choice [... N k] in each head as indices into one bank of all heads' experts.

    The bank holds the `num_experts` of the first head, then those of the second, and so on.
    """
    first = num_experts * jnp.arange(choice.index.shape[-2])
    return dataclasses.replace(choice, index=choice.index + first[:, None])


def project(
    x: Float[Array, "*L D"], index: Int[Array, "*L k"], bank: Float[Array, "E D M"]
) -> Float[Array, "*L k M"]:
    """Returns each token's product with each of its experts.

    Leading axes are inputs: tokens `[B T]`, or also heads or earlier choices. Where each choice has
    an input of its own, call `project(x, index[..., None], bank)`.
    """

    def run(x: Array, index: Array, bank: Array) -> Array:
        x, index = _from_peers(x), _from_peers(index)
        groups, _ = _group(x, index, bank.shape[0])
        y = dispatch_matmul(x.reshape(-1, x.shape[-1]), bank, groups)
        y = _permute(y, groups.place, groups.order)
        return _to_peers(y.reshape(*index.shape, y.shape[-1]))

    names = *map(_tokens, (x, index)), (None,) * 3
    return locally(run, (x, index, bank), names, (*_tokens(index), None))


def mix(y: Float[Array, "*L k D"], weight: Float[Array, "*L k"]) -> Float[Array, "*L D"]:
    """Returns the weighted sum of the outputs of each token's experts, summed in float32."""
    return (y.astype(jnp.float32) * weight[..., None]).sum(-2).astype(y.dtype)


def project_and_mix(
    x: Float[Array, "*L D"],
    index: Int[Array, "*L k"],
    weight: Float[Array, "*S j"],
    bank: Float[Array, "E D M"],
) -> Float[Array, "*S M"]:
    """Returns `mix` of `project`; the sum comes first where outputs are wider than inputs.

    Args:
      x: inputs.
      index: the experts of each input.
      weight: factors of the same choices in the same order, grouped by the sum that they enter.
      bank: one matrix for each expert.
    """

    def run(x: Array, index: Array, weight: Array, bank: Array) -> Array:
        x, index, weight = map(_from_peers, (x, index, weight))
        groups, _ = _group(x, index, bank.shape[0])
        flat, weights = x.reshape(-1, x.shape[-1]), weight.reshape(-1, weight.shape[-1])
        if bank.shape[2] > bank.shape[1]:
            y = combine_matmul(dispatch(flat, groups), bank, groups, weights)
        else:
            y = combine(dispatch_matmul(flat, bank, groups), groups, weights)
        return _to_peers(y.reshape(*weight.shape[:-1], -1))

    names = *map(_tokens, (x, index, weight)), (None,) * 3
    return locally(run, (x, index, weight, bank), names, _tokens(weight))


def expert_mlp(
    x: Float[Array, "*L D"],
    choice: Choice,
    up: Float[Array, "E D M"],
    down: Float[Array, "E M D"],
    activation: Callable[[Array], Array],
    gate: Float[Array, "E D M"] | None = None,
    up_bias: Float[Array, "E M"] | None = None,
    down_bias: Float[Array, "E D"] | None = None,
) -> Float[Array, "*L D"]:
    """Returns the weighted sum of chosen experts' `activation(x up + up_bias) down + down_bias`.

    With `gate` it is that of `(activation(x gate) * (x up)) down`, of experts without biases.
    """

    def run(x, index, weight, up, down, gate, up_bias, down_bias) -> Array:
        x, index, weight = map(_from_peers, (x, index, weight))
        groups, chosen = _group(x, index, up.shape[0])
        entry = chosen[groups.order]
        weights = weight.reshape(-1, weight.shape[-1])
        added = lambda rows, bias: rows + of_each(bias, entry, groups.sizes)
        read = lambda bank: dispatch_matmul(x.reshape(-1, x.shape[-1]), bank, groups)
        rows = read(up)
        if gate is not None:
            rows = activation(read(gate)) * rows
        else:
            rows = activation(rows if up_bias is None else added(rows, up_bias))
        if down_bias is None:
            y = combine_matmul(rows, down, groups, weights)
        else:
            rows = grouped_matmul(rows, down, groups.sizes)
            y = combine(added(rows, down_bias), groups, weights)
        return _to_peers(y.reshape(x.shape))

    mlp = "mlp" if down_bias is None else None  # with `down` sharded, each shard would add the bias
    banks = (None, None, mlp), (None, mlp, None), (None, None, mlp), (None, mlp), (None, None)
    arrays = x, choice.index, choice.weight, up, down, gate, up_bias, down_bias
    names = *map(_tokens, arrays[:3]), *banks
    return locally(run, arrays, names, _tokens(x), summed=mlp)


def _tokens(x: Array) -> tuple[str | None, ...]:
    """Returns the logical axes of an array whose leading axes are batch and tokens."""
    return *("batch", "length", *(None,) * x.ndim)[: x.ndim - 1], None


def _group(x: Array, index: Array, num_experts: int) -> tuple[Groups, Int[Array, "N"]]:
    """Returns choices sorted by expert, and each choice's index in this device's bank.

    Choices of experts that other devices hold come last, are in no group and have the index
    `num_experts`.
    """
    if x.shape[:-1] != index.shape[:-1]:
        raise ValueError(f"experts: tokens are {x.shape[:-1]} but choices {index.shape[:-1]}.")
    index = index.reshape(-1, index.shape[-1])
    if _has_peers():
        index = index - jax.lax.axis_index(PEERS) * num_experts
        index = jnp.where((index >= 0) & (index < num_experts), index, num_experts)
    return group_choices(index, num_experts), index.reshape(-1)


def _has_peers() -> bool:
    """Returns whether experts, and rows of the batch, are sharded over the axis `PEERS`."""
    return PEERS in batch.axes()


def _from_peers(x: Array) -> Array:
    """Returns the all-gathered rows of the devices over which experts are sharded."""
    return jax.lax.all_gather(x, PEERS, tiled=True) if _has_peers() else x


def _to_peers(y: Float[Array, "P ..."]) -> Float[Array, "B ..."]:
    """Returns this device's rows, summed over the experts of all devices: a reduce-scatter."""
    return jax.lax.psum_scatter(y, PEERS, tiled=True) if _has_peers() else y


@jax.custom_vjp
def _permute(rows: Array, order: Array, inverse: Array) -> Array:
    """Returns rows in a new order; its gradient is a gather, while that of indexing scatters."""
    return rows[order]


_permute.defvjp(
    lambda rows, order, inverse: (rows[order], inverse),
    lambda inverse, gradient: (gradient[inverse], None, None),
)
