"""The MoEUT block: sigma-MoE and SwitchHead, normalised only where something is decided.

Csordás et al. 2024, arXiv 2405.16039 (SwitchHead: Csordás et al. 2023, arXiv 2312.07987). A layer
normalisation stands before queries, keys and the selection of experts; values and the residual
stream are never normalised, so that what the experts give grows with what they are given
("peri-layernorm").
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import batch, ranges
from recursia.layers import balance, experts
from recursia.layers.attention import Context, KeysValues, attend
from recursia.layers.balance import Usage
from recursia.layers.linear import dot
from recursia.layers.norm import layer_specs, normalise
from recursia.layers.rotary import rotate
from recursia.params import Initializer, Spec, normal

SLOTS = ("norms", "attention", "attention_experts", "attention_router", "experts", "router")
FLOAT32 = ("attention_router", "router")  # a rounded logit would choose another expert
SOURCE = (("attention", "key"), ("attention_experts", "value"), ("attention_router", "value"))


@dataclasses.dataclass(frozen=True)
class Config:
    """Widths of the block.

    Attributes:
      embed_dim: width of the residual stream.
      num_heads: of attention.
      head_dim: width of a head.
      num_experts: of the feed-forward layer.
      top_k: of them, how many a token takes.
      expert_dim: hidden width of each.
      num_attention_experts: value and output projections of each head; of 1, each head's output has
        a gate instead of a choice.
      attention_top_k: of them, how many a token takes, once for values and once for outputs.
      rope_fraction: of a head, how much is rotated, rounded down to an even width.
      rope_base: base of the rotary wavelengths.
      norm_eps: added to the variance of layer normalisation.
      entropy_weight: of the loss that spreads a sequence over the feed-forward experts.
      attention_entropy_weight: of the same loss of the attention experts.
    """

    embed_dim: int
    num_heads: int
    head_dim: int
    num_experts: int
    top_k: int
    expert_dim: int = 128
    num_attention_experts: int = 8
    attention_top_k: int = 2
    rope_fraction: float = 0.5
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    entropy_weight: float = 0.01
    attention_entropy_weight: float = 0.001

    def __post_init__(self):
        ranges.at_least(1, self, "embed_dim", "num_heads", "head_dim", "expert_dim")
        ranges.at_least(1, self, "num_experts", "num_attention_experts", "attention_top_k")
        ranges.choice(self, "top_k", "num_experts")
        if self.num_attention_experts != 1:
            ranges.choice(self, "attention_top_k", "num_attention_experts")
        ranges.fraction(self, "rope_fraction")
        ranges.above(0, self, "rope_base")
        ranges.at_least(0, self, "norm_eps", "entropy_weight", "attention_entropy_weight")

    @property
    def has_attention_experts(self) -> bool:
        """Whether values and outputs have experts to choose from."""
        return self.num_attention_experts > 1


def specs(config: Config, num_steps: int) -> dict[str, Any]:
    """Returns the specs of one block, by slot; variances fall with the effective depth."""
    d, h, n = config.embed_dim, config.head_dim, config.num_heads
    e, m, a = config.num_experts, config.expert_dim, config.num_attention_experts
    scale = math.sqrt(2 / num_steps)
    std, std_out = scale / math.sqrt(d), scale / math.sqrt(n * h)
    heads = Spec((d, n, h), ("embed", "heads", None), normal(std))
    if config.has_attention_experts:
        value = Spec((n * a, d, h), ("experts", "embed", None), normal(std))
        out = Spec((n * a, h, d), ("experts", None, "embed"), normal(std_out))
        select = Spec((d, n, a), ("embed", "heads", None), _alike(std, is_by_expert=True))
        router = {"value": select, "out": select}
    else:
        value = heads
        out = Spec((n, h, d), ("heads", None, "embed"), normal(std_out), inputs=2)
        router = {"out": Spec((d, n), ("embed", "heads"), _alike(std, is_by_expert=True))}
    # The scale of `down` is that of all experts together, not of the few that a token takes.
    std_down = scale / math.sqrt(e * m)
    return {
        "norms": {"attention": layer_specs(d), "experts": layer_specs(d)},
        "attention": {"query": heads, "key": heads},
        "attention_experts": {"value": value, "out": out},
        "attention_router": router,
        "experts": {
            "up": Spec((e, d, m), ("experts", "embed", "mlp"), normal(std)),
            "down": Spec((e, m, d), ("experts", "mlp", "embed"), normal(std_down)),
        },
        "router": Spec((d, e), ("embed", None), _alike(std, is_by_expert=False)),
    }


def _alike(std: float, is_by_expert: bool) -> Initializer:
    """Returns an initializer of directions [D ...] of about one length, so that none is favoured.

    Args:
      std: of a normal draw, whose directions they are.
      is_by_expert: whether a direction keeps the standard deviation that its own draw happened to
        have, or has that of all.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        drawn = std * jax.random.normal(key, shape, dtype)
        unit = drawn / jnp.linalg.norm(drawn, axis=0, keepdims=True)
        spread = drawn.std(0 if is_by_expert else None, ddof=1, keepdims=True)
        return unit * spread / unit.std(ddof=1)

    return init


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
      params: one entry of each slot's bank, in the compute dtype; routers in float32.
      x: hidden states of the tokens in `context`.
      context: where those tokens stand.
      config: widths.
      source: keys and values to read instead of the block's own, with their tokens' context.
      memory: states of the same tokens to make keys and values from, instead of `x`.

    Returns:
      The new hidden states, the keys and values made (None if `source` was read), and how the
      tokens used the experts.
    """
    norm = lambda x, name: normalise(x, params["norms"][name], config.norm_eps)
    heads = lambda h, name: dot(h, params["attention"][name], "d,dnh->nh")
    h = norm(x, "attention")
    query = _rotate(heads(h, "query"), context, config)
    made, taken = None, None
    if source is None:
        raw, m = (x, h) if memory is None else (memory, norm(memory, "attention"))
        value, taken = _values(params, raw, m, context, config)
        made = KeysValues(_rotate(heads(m, "key"), context, config), value)
        source = made, context
    mixed = attend(query, source[0], context, source[1])
    out, given = _outputs(params, mixed, h, context, config)
    x = x + out
    logits = _logits(norm(x, "experts"), params["router"], "d,de->e")
    choice = experts.choose(logits, config.top_k, score="sigmoid", is_renormalised=False)
    up, down = params["experts"]["up"], params["experts"]["down"]
    report = {"router": balance.usage(logits, choice.index, context.is_live)}
    if config.has_attention_experts:
        # A step that reads values chooses no projection for them: it adds nothing to their sums.
        taken = jax.tree.map(jnp.zeros_like, given) if taken is None else taken
        report["attention_router"] = {"value": taken, "out": given}
    return x + experts.expert_mlp(x, choice, up, down, jax.nn.relu), made, report


def _rotate(
    heads: Float[Array, "B T N H"], context: Context, config: Config
) -> Float[Array, "B T N H"]:
    """Rotates the first part of each head and leaves the rest."""
    width = int(config.rope_fraction * config.head_dim)
    turned, rest = jnp.split(heads, [width - width % 2], axis=-1)
    turned = rotate(turned, context.positions, config.rope_base)
    return jnp.concatenate([turned, rest], axis=-1)


def _logits(h: Array, router: Array, einsum: str) -> Array:
    return dot(h.astype(jnp.float32), router, einsum)


def _choose(
    h: Array, router: Array, context: Context, config: Config
) -> tuple[experts.Choice, Usage]:
    """Chooses each head's projections among its own, as entries [B T N*k] of the bank of all."""
    logits = _logits(h, router, "d,dne->ne")
    k = config.attention_top_k
    choice = experts.choose(logits, k, score="sigmoid", is_renormalised=False)
    return (
        experts.by_head(choice, config.num_attention_experts),
        balance.usage(logits, choice.index, context.is_live),
    )


def _values(
    params: dict[str, Any], x: Array, h: Array, context: Context, config: Config
) -> tuple[Float[Array, "B T N H"], Usage | None]:
    """Returns the values of raw states `x`, by projections chosen from their norm `h`."""
    bank = params["attention_experts"]["value"]
    if not config.has_attention_experts:
        return dot(x, bank, "d,dnh->nh"), None
    choice, usage = _choose(h, params["attention_router"]["value"], context, config)
    flat = choice.index.reshape(*x.shape[:2], -1)
    return experts.project_and_mix(x, flat, choice.weight, bank), usage


def _outputs(
    params: dict[str, Any], mixed: Array, h: Array, context: Context, config: Config
) -> tuple[Float[Array, "B T D"], Usage | None]:
    """Returns what attention adds, by projections of heads `mixed` chosen from the norm `h`."""
    bank, router = params["attention_experts"]["out"], params["attention_router"]["out"]
    if not config.has_attention_experts:
        gate = jax.nn.sigmoid(_logits(h, router, "d,dn->n"))
        return dot(mixed * gate[..., None].astype(mixed.dtype), bank, "nh,nhd->d"), None
    choice, usage = _choose(h, router, context, config)
    weight = choice.weight.reshape(*h.shape[:2], -1)
    return experts.project_and_mix(mixed, choice.index, weight, bank), usage


def losses(config: Config, reports: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns minus the entropy of each sequence's use of experts, and how evenly they are used.

    One term for each stored router, over all its uses in a sequence. The probabilities are softmax
    though the gates are sigmoid, and nothing else uses them.

    Args:
      config: the weights of the terms.
      reports: usage summed over the uses of each entry, entries in front.
    """
    term = lambda usage: jax.vmap(balance.sequence_loss)(usage).sum()
    found = {"expert_entropy": config.entropy_weight * term(reports["router"])}
    metrics = {"expert_usage": _evenness(reports["router"])}
    if heads := reports.get("attention_router"):
        both = term(heads["value"]) + term(heads["out"])
        found["attention_entropy"] = config.attention_entropy_weight * both
        metrics["attention_usage"] = (_evenness(heads["value"]) + _evenness(heads["out"])) / 2
    return found, metrics


def _evenness(usage: Usage) -> Float[Array, ""]:
    """Returns the share of experts that would, all used alike, have the entropy of what was taken.

    1 where a batch takes all experts alike; a mean over routers and heads.
    """
    taken = batch.total(usage.taken.sum(1))
    share = taken / jnp.maximum(taken.sum(-1, keepdims=True), 1.0)
    return jnp.exp(jax.scipy.special.entr(share).sum(-1)).mean() / share.shape[-1]


def forward_flops(config: Config, keys: float, is_reading: bool) -> float:
    """Returns the forward matrix-multiplication FLOPs of one token through one block.

    Args:
      config: widths.
      keys: number of keys that a query meets, masked ones included.
      is_reading: whether the keys and values are another step's, and not made here.
    """
    d, wide = config.embed_dim, config.num_heads * config.head_dim
    made = 0 if is_reading else 1
    if config.has_attention_experts:
        chosen = (1 + made) * config.attention_top_k
        scored = (1 + made) * config.num_attention_experts
    else:
        chosen, scored = 1 + made, 1
    attention = 2 * d * wide * (1 + made + chosen) + 2 * d * config.num_heads * scored
    mlp = 4 * config.top_k * d * config.expert_dim + 2 * d * config.num_experts
    return attention + 4 * wide * keys + mlp


def recomputed_flops(config: Config, keys: float) -> float:
    """Returns the FLOPs of one token that any backward pass computes again: attention's scores."""
    return 2 * config.num_heads * config.head_dim * keys


def cache_entries(config: Config) -> int:
    """Returns how many numbers one step keeps for one token: its key and its value."""
    return 2 * config.num_heads * config.head_dim
