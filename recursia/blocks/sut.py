"""The Sparse Universal Transformer's block: experts in attention and in the feed-forward network.

Tan et al. 2023, arXiv 2310.07096. A router chooses a few experts for each token: in attention those
that project its queries and the result, in front of keys and values that all share; and those that
make the feed-forward network. Where the paper and the released code differ is said at the option.
The released code draws some of a token's experts at random while training (`sample_topk`, off in
its base model) and has dropout; neither is here.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.layers.attention import Context, KeysValues, attend
from recursia.layers.balance import Usage, information, usage
from recursia.layers.experts import Choice, choose, expert_mlp, mix, project
from recursia.layers.linear import dot
from recursia.layers.norm import layer_specs, normalise
from recursia.params import Initializer, Spec

SLOTS = (
    "norms",
    "attention",
    "relative",
    "attention_experts",
    "attention_router",
    "experts",
    "router",
)
FLOAT32 = ("attention_router", "router")  # slots whose weights are not cast to the compute dtype
SOURCE = (("attention", "key"), ("attention", "value"))  # weights that a reading step leaves out


@dataclasses.dataclass(frozen=True)
class Config:
    """Widths of the block, and how its experts are evened out.

    Attributes:
      embed_dim: width of the residual stream.
      num_heads: key and value heads, and query heads of one attention expert.
      head_dim: width of a head.
      num_attention_experts: each projects queries and what their heads attended to.
      attention_top_k: of them, how many a token takes.
      num_experts: of the feed-forward network.
      top_k: of them, how many a token takes.
      expert_dim: hidden width of one of them.
      num_distances: how far behind keys are told apart: 0, 1, ... positions, the last and farther
        as one. The released table has as many for keys ahead, which a causal model never meets.
      norm: "post", as published, after each residual sum; or "pre", before each part, and then
        once before the head.
      mim_weight: of the mutual information between tokens and experts, summed over the routers.
        Published as 0.1 of a loss that is summed over tokens, so far less of a mean one.
      mim_sign: "intended" adds H(expert | token) - H(expert), as in the paper; "released" adds
        their sum, as its code does, which makes tokens share a few experts.
      norm_eps: added to the variance of LayerNorm.
    """

    embed_dim: int
    num_heads: int
    head_dim: int
    num_attention_experts: int
    attention_top_k: int
    num_experts: int
    top_k: int
    expert_dim: int
    num_distances: int = 64
    norm: Literal["post", "pre"] = "post"
    mim_weight: float = 0.1
    mim_sign: Literal["intended", "released"] = "intended"
    norm_eps: float = 1e-5

    def __post_init__(self):
        ranges.at_least(1, self, "embed_dim", "num_heads", "head_dim", "expert_dim")
        ranges.at_least(1, self, "num_distances", "num_attention_experts", "num_experts")
        ranges.choice(self, "attention_top_k", "num_attention_experts")
        ranges.choice(self, "top_k", "num_experts")
        ranges.at_least(0, self, "mim_weight", "norm_eps")


def specs(config: Config, num_steps: int) -> dict[str, Any]:
    """Returns the specs of one block, by slot; their scales do not depend on the depth."""
    d, m, n, h = config.embed_dim, config.expert_dim, config.num_heads, config.head_dim
    norm = layer_specs(d)
    shared = Spec((d, n, h), ("embed", "kv_heads", None), uniform((3 / (d + n * h)) ** 0.5))
    shape = (n, h, config.num_distances)
    distances = Spec(shape, ("kv_heads", None, None), zeros, is_decayed=False)

    def bank(experts: int, taken: int, given: int, axes: tuple[str | None, ...]) -> Spec:
        return Spec((experts, taken, given), ("experts", *axes), uniform(1 / taken))

    def bias(experts: int, taken: int, given: int) -> Spec:
        return Spec((experts, given), ("experts", None), uniform(taken**-0.5), is_decayed=False)

    def router(experts: int) -> dict[str, Spec]:
        init = uniform(d**-0.5)
        return {
            "hidden": Spec((d, d), ("embed", None), init),
            "bias": Spec((d,), (None,), init, is_decayed=False),
            "out": Spec((d, experts), ("embed", None), init),
        }

    e, f = config.num_attention_experts, config.num_experts
    return {
        "norms": {"attention": norm, "mlp": norm},
        "attention": {"key": shared, "value": shared},
        "relative": {"table": distances},
        "attention_experts": {
            "query": bank(e, d, n * h, ("embed", "heads")),
            "out": bank(e, n * h, d, ("heads", "embed")),
        },
        "attention_router": router(e),
        "experts": {
            "up": bank(f, d, m, ("embed", "mlp")),
            "up_bias": bias(f, d, m),
            "down": bank(f, m, d, ("mlp", "embed")),
            "down_bias": bias(f, m, d),
        },
        "router": router(f),
    }


def uniform(bound: float) -> Initializer:
    """Returns an initializer of independent entries spread evenly from `-bound` to `bound`."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


zeros = jax.nn.initializers.zeros


def final_norm(config: Config) -> dict[str, Spec] | None:
    """Returns the norm between the last block and the head; None where blocks end in their own."""
    return layer_specs(config.embed_dim) if config.norm == "pre" else None


def apply(
    params: dict[str, Any],
    x: Float[Array, "B T D"],
    context: Context,
    config: Config,
    source: tuple[KeysValues, Context] | None = None,
    memory: Float[Array, "B T D"] | None = None,
) -> tuple[Float[Array, "B T D"], KeysValues | None, dict[str, Any]]:
    """Applies the block once; tokens that are not live take no expert.

    Args:
      params: one entry of each slot's bank, in the compute dtype but for the routers.
      x: hidden states of the tokens in `context`.
      context: where those tokens stand.
      config: widths.
      source: keys and values to read instead of the block's own, with their tokens' context.
      memory: states of the same tokens to make keys and values from, instead of `x`.

    Returns:
      The new hidden states, the keys and values made (None if `source` was read), and how each
      router was used.
    """
    normed = lambda x, name: normalise(x, params["norms"][name], config.norm_eps)
    before = normed if config.norm == "pre" else lambda x, name: x
    after = normed if config.norm == "post" else lambda x, name: x
    h, made = before(x, "attention"), None
    if source is None:
        m = h if memory is None else before(memory, "attention")
        key, value = (dot(m, params["attention"][name], "d,dnh->nh") for name in ("key", "value"))
        made = KeysValues(key, value)
        source = made, context
    choice, attention_usage = _route(params["attention_router"], h, config.attention_top_k, context)
    x = after(x + _attention(params, h, choice, source, context, config), "attention")
    h = before(x, "mlp")
    choice, mlp_usage = _route(params["router"], h, config.top_k, context)
    x = after(x + expert_mlp(h, choice, activation=_gelu, **params["experts"]), "mlp")
    return x, made, {"attention_router": attention_usage, "router": mlp_usage}


def _route(
    weights: dict[str, Array], x: Array, top_k: int, context: Context
) -> tuple[Choice, Usage]:
    """Returns the experts of each token, and the sums that even them out."""
    h = jnp.tanh(dot(x.astype(jnp.float32), weights["hidden"], "d,de->e") + weights["bias"])
    logits = dot(h, weights["out"], "d,de->e")
    choice = choose(logits, top_k, score="softmax", is_renormalised=True)
    if context.is_live is not None:
        live = context.is_live[..., None]
        choice = choice.replace(weight=jnp.where(live, choice.weight, 0.0))
    return choice, usage(logits, choice.index, context.is_live)


def _attention(
    params: dict[str, Any],
    h: Array,
    choice: Choice,
    source: tuple[KeysValues, Context],
    context: Context,
    config: Config,
) -> Array:
    """Returns the weighted sum of what the chosen experts' heads attended to."""
    experts, (batch, length, _) = params["attention_experts"], h.shape
    n, k, width = config.num_heads, config.attention_top_k, config.head_dim
    query = project(h, choice.index, experts["query"]).reshape(batch, length, k, n, width)
    # Those that read one key head side by side, as `attend` takes them: [B T N k H].
    query = query.swapaxes(2, 3)
    by_head = jax.vmap(lambda q, table: dot(q, table, "h,hr->r"), (2, 0), 2)
    relative = by_head(query / width**0.5, params["relative"]["table"])
    flat = lambda y: y.reshape(batch, length, n * k, -1)
    mixed = attend(flat(query), source[0], context, source[1], flat(relative))
    mixed = mixed.reshape(batch, length, n, k, width).swapaxes(2, 3).reshape(batch, length, k, -1)
    return mix(project(mixed, choice.index[..., None], experts["out"])[..., 0, :], choice.weight)


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def batch_losses(config: Config) -> tuple[str, ...]:
    """Returns the weights in force of losses that are no sums over tokens."""
    return ("mim_weight",) if config.mim_weight else ()


def losses(config: Config, reports: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns the loss of all routers, and the mean entropies that it is made of, in nats."""
    if not reports:
        return {}, {}
    total, metrics = 0.0, {}
    for slot, used in reports.items():
        conditional, marginal = jax.vmap(information)(used)  # [entries]
        sign = -1 if config.mim_sign == "intended" else 1
        total += (conditional + sign * marginal).sum()
        metrics[f"{slot}_entropy_given_token"] = conditional.mean()
        metrics[f"{slot}_entropy"] = marginal.mean()
    return {"mim": config.mim_weight * total}, metrics


def forward_flops(config: Config, keys: float, is_reading: bool) -> float:
    """Returns the forward matrix-multiplication FLOPs of one token through one block.

    Args:
      config: widths.
      keys: number of keys that a query meets, masked ones included.
      is_reading: whether the keys and values are another step's, and not made here.
    """
    d, width = config.embed_dim, config.num_heads * config.head_dim
    routers = 4 * d * d + 2 * d * (config.num_attention_experts + config.num_experts)
    made = 0 if is_reading else 4 * d * width
    chosen = config.attention_top_k * width * (4 * d + 2 * config.num_distances + 4 * keys)
    return routers + made + chosen + 4 * config.top_k * d * config.expert_dim


def recomputed_flops(config: Config, keys: float) -> float:
    """Returns the FLOPs of one token that any backward pass computes again: attention's scores."""
    return 2 * config.attention_top_k * config.num_heads * config.head_dim * keys


def cache_entries(config: Config) -> int:
    """Returns how many numbers one step keeps for one token: its key and its value."""
    return 2 * config.num_heads * config.head_dim
