"""A pre-norm Transformer block whose feed-forward layer is a mixture of softmax experts.

The block of WideNet (Xue et al. 2021, arXiv 2107.11817) as part of a language model: causal
attention with rotary positions, no biases. With one expert it is a plain Transformer block.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.layers import balance, experts
from recursia.layers.attention import Context, KeysValues, attend
from recursia.layers.linear import dot
from recursia.layers.norm import layer_specs, normalise
from recursia.layers.rotary import rotate
from recursia.params import Spec, normal

SLOTS = ("norms", "attention", "experts", "router")
FLOAT32 = ("router",)  # a rounded logit would choose another expert
SOURCE = (("attention", "key"), ("attention", "value"))


@dataclasses.dataclass(frozen=True)
class Config:
    """Widths of the block.

    Attributes:
      embed_dim: width of the residual stream.
      num_heads: of attention.
      head_dim: width of a head; even, for the rotation.
      num_experts: of the feed-forward layer.
      top_k: of them, how many a token takes.
      expert_dim: hidden width of each.
      capacity: places of an expert over its mean number of tokens in a row: those that come too
        late keep what attention gave them. The product of groups needs no bound, and with one the
        documents of a row see how full an expert is; None has none.
      balance_loss_weight: of the loss that makes experts taken alike.
      rope_base: base of the rotary wavelengths.
      norm_eps: added to the variance of layer normalisation.
      init_std: standard deviation of every matrix at the start; those that write to the residual
        stream have it divided by sqrt(2 steps), for as many writes add up there.
    """

    embed_dim: int
    num_heads: int
    head_dim: int
    num_experts: int
    top_k: int
    expert_dim: int
    capacity: float | None = None
    balance_loss_weight: float = 0.01
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self):
        ranges.at_least(1, self, "embed_dim", "num_heads", "head_dim", "expert_dim", "num_experts")
        ranges.choice(self, "top_k", "num_experts")
        ranges.above(0, self, "rope_base", *(("capacity",) if self.capacity is not None else ()))
        ranges.at_least(0, self, "balance_loss_weight", "norm_eps", "init_std")
        if self.head_dim % 2:
            raise ValueError(f"head_dim: got {self.head_dim}, takes an even number (rotary halves)")


def specs(config: Config, num_steps: int) -> dict[str, Any]:
    """Returns the specs of one block, by slot, for a model that applies it in `num_steps` steps."""
    d, h, n = config.embed_dim, config.head_dim, config.num_heads
    e, m = config.num_experts, config.expert_dim
    read = normal(config.init_std)
    write = normal(config.init_std / math.sqrt(2 * num_steps))
    heads = Spec((d, n, h), ("embed", "heads", None), read)
    return {
        "norms": {"attention": layer_specs(d), "experts": layer_specs(d)},
        "attention": {
            "query": heads,
            "key": heads,
            "value": heads,
            "out": Spec((n, h, d), ("heads", None, "embed"), write, inputs=2),
        },
        "experts": {
            "up": Spec((e, d, m), ("experts", "embed", "mlp"), read),
            "down": Spec((e, m, d), ("experts", "mlp", "embed"), write),
        },
        "router": Spec((d, e), ("embed", None), read),
    }


def final_norm(config: Config) -> dict[str, Spec]:
    """Returns the norm between the last block and the head."""
    return layer_specs(config.embed_dim)


def apply(
    params: dict[str, Any],
    x: Float[Array, "B T D"],
    context: Context,
    config: Config,
    source: tuple[KeysValues, Context] | None = None,
    memory: Float[Array, "B T D"] | None = None,
) -> tuple[Float[Array, "B T D"], KeysValues | None, dict[str, Any]]:
    """Applies the block once.

    Args:
      params: one entry of each slot's bank, in the compute dtype; the router in float32.
      x: hidden states of the tokens in `context`.
      context: where those tokens stand.
      config: widths.
      source: keys and values to read instead of the block's own, with their tokens' context.
      memory: states of the same tokens to make keys and values from, instead of `x`.

    Returns:
      The new hidden states, the keys and values made (None if `source` was read), and how the
      tokens used the experts.
    """
    weights = params["attention"]
    norm = lambda x, name: normalise(x, params["norms"][name], config.norm_eps)
    heads = lambda h, name: dot(h, weights[name], "d,dnh->nh")
    h = norm(x, "attention")
    query = rotate(heads(h, "query"), context.positions, config.rope_base)
    made = None
    if source is None:
        m = h if memory is None else norm(memory, "attention")
        key = rotate(heads(m, "key"), context.positions, config.rope_base)
        made = KeysValues(key, heads(m, "value"))
        source = made, context
    mixed = attend(query, source[0], context, source[1])
    x = x + dot(mixed, weights["out"], "nh,nhd->d")
    h = norm(x, "experts")
    logits = dot(h.astype(jnp.float32), params["router"], "d,de->e")
    choice = experts.choose(logits, config.top_k, score="softmax", is_renormalised=False)
    report = {"router": balance.usage(logits, choice.index, context.is_live)}
    choice = experts.limit(choice, config.num_experts, config.capacity, context.is_live)
    up, down = params["experts"]["up"], params["experts"]["down"]
    gelu = functools.partial(jax.nn.gelu, approximate=False)
    return x + experts.expert_mlp(h, choice, up, down, gelu), made, report


def batch_losses(config: Config) -> tuple[str, ...]:
    """Returns the weights in force of losses that are no sums over tokens."""
    return ("balance_loss_weight",) if config.balance_loss_weight else ()


def losses(config: Config, reports: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns how unevenly each stored router's experts are taken, over all its uses in the batch.

    Args:
      config: the weight of the loss.
      reports: usage summed over the uses of each router, routers in front.
    """
    unevenness = jax.vmap(balance.switch_loss)(reports["router"])
    found = {"expert_balance": config.balance_loss_weight * unevenness.sum()}
    return found, {"expert_unevenness": unevenness.mean()}


def forward_flops(config: Config, keys: float, is_reading: bool) -> float:
    """Returns the forward matrix-multiplication FLOPs of one token through one block.

    Args:
      config: widths.
      keys: number of keys that a query meets, masked ones included.
      is_reading: whether the keys and values are another step's, and not made here.
    """
    d, wide = config.embed_dim, config.num_heads * config.head_dim
    projections = 2 * d * wide * (2 if is_reading else 4)
    mlp = 4 * config.top_k * d * config.expert_dim + 2 * d * config.num_experts
    return projections + 4 * wide * keys + mlp


def recomputed_flops(config: Config, keys: float) -> float:
    """Returns the FLOPs of one token that any backward pass computes again: attention's scores."""
    return 2 * config.num_heads * config.head_dim * keys


def cache_entries(config: Config) -> int:
    """Returns how many numbers one step keeps for one token: its key and its value."""
    return 2 * config.num_heads * config.head_dim
