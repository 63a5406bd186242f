"""The Universal Transformer's block: self-attention and a ReLU transition, pre- or post-norm.

Dehghani et al. 2018, arXiv 1807.03819. The paper normalises each sum, H = LN(A + F(A)) with
A = LN(X + MHA(X)); the released code, which produced the paper's results, normalises what attention
and transition read, and once more before the head. Neither rotates: where a token stands, in the
text and in depth, is added to its state when a recursion starts (`recursia.inject`).
"""

import dataclasses
import math
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from recursia import ranges
from recursia.layers.attention import Context, KeysValues, attend
from recursia.layers.linear import dot
from recursia.layers.norm import layer_specs, normalise, zeros
from recursia.params import Spec, normal

SLOTS = ("norms", "attention", "mlp")
FLOAT32 = ()  # slots whose weights are not cast to the compute dtype
SOURCE = (("attention", "key"), ("attention", "value"))  # weights that a reading step leaves out


@dataclasses.dataclass(frozen=True)
class Config:
    """Widths of the block, and where its norms stand.

    Attributes:
      embed_dim: width of the residual stream.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`. The paper has as many as queries.
      head_dim: width of a head.
      mlp_dim: hidden width of the transition.
      norm: "pre" before attention and transition, as released, or "post" after each sum, as in the
        paper.
      norm_eps: added to the variance of layer normalisation.
      init_scale: standard deviation of every matrix at the start, times the root of its inputs;
        with "pre", those that write to the residual stream have it divided by sqrt(2 steps), for
        as many writes add up there.
    """

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    norm: Literal["pre", "post"] = "pre"
    norm_eps: float = 1e-6
    init_scale: float = 1.0

    def __post_init__(self):
        ranges.at_least(1, self, "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
        ranges.at_least(0, self, "norm_eps", "init_scale")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} query heads do not divide over num_kv_heads "
                f"{self.num_kv_heads}; take a multiple of {self.num_kv_heads}"
            )


def specs(config: Config, num_steps: int) -> dict[str, Any]:
    """Returns the specs of one block, by slot, for a model that applies it in `num_steps` steps."""
    d, f, h = config.embed_dim, config.mlp_dim, config.head_dim
    n, k = config.num_heads, config.num_kv_heads
    writes = 2 * num_steps if config.norm == "pre" else 1
    into = lambda inputs: normal(config.init_scale / math.sqrt(inputs))
    bias = lambda width, axis: Spec((width,), (axis,), zeros, is_decayed=False)
    return {
        "norms": {"attention": layer_specs(d), "mlp": layer_specs(d)},
        "attention": {
            "query": Spec((d, n, h), ("embed", "heads", None), into(d)),
            "key": Spec((d, k, h), ("embed", "kv_heads", None), into(d)),
            "value": Spec((d, k, h), ("embed", "kv_heads", None), into(d)),
            "out": Spec((n, h, d), ("heads", None, "embed"), into(writes * n * h), inputs=2),
        },
        "mlp": {
            "up": Spec((d, f), ("embed", "mlp"), into(d)),
            "up_bias": bias(f, "mlp"),
            "down": Spec((f, d), ("mlp", "embed"), into(writes * f)),
            "down_bias": bias(d, None),
        },
    }


def final_norm(config: Config) -> dict[str, Spec] | None:
    """Returns the norm between the last block and the head; "post" has normalised already."""
    return layer_specs(config.embed_dim) if config.norm == "pre" else None


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
      params: one entry of each slot's bank, in the compute dtype.
      x: hidden states of the tokens in `context`.
      context: where those tokens stand.
      config: widths and norms.
      source: keys and values to read instead of the block's own, with their tokens' context.
      memory: states of the same tokens to make keys and values from, instead of `x`.

    Returns:
      The new hidden states, the keys and values made (None if `source` was read), and what the
      block reports: nothing.
    """
    norm = lambda x, name: normalise(x, params["norms"][name], config.norm_eps)
    as_it_is = lambda x, name: x
    before, after = (norm, as_it_is) if config.norm == "pre" else (as_it_is, norm)
    weights = params["attention"]
    h = before(x, "attention")
    query = dot(h, weights["query"], "d,dnh->nh")
    made = None
    if source is None:
        m = h if memory is None else before(memory, "attention")
        key, value = (dot(m, weights[name], "d,dkh->kh") for name in ("key", "value"))
        made = KeysValues(key, value)
        source = made, context
    mixed = attend(query, source[0], context, source[1])
    x = after(x + dot(mixed, weights["out"], "nh,nhd->d"), "attention")
    return after(x + _transition(params["mlp"], before(x, "mlp")), "mlp"), made, {}


def _transition(weights: dict[str, Any], x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    hidden = jax.nn.relu(dot(x, weights["up"], "d,df->f") + weights["up_bias"])
    return dot(hidden, weights["down"], "f,fd->d") + weights["down_bias"]


def losses(config: Config, reports: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns no losses and no metrics."""
    return {}, {}


def forward_flops(config: Config, keys: float, is_reading: bool) -> float:
    """Returns the forward matrix-multiplication FLOPs of one token through one block.

    Args:
      config: widths.
      keys: number of keys that a query meets, masked ones included.
      is_reading: whether the keys and values are another step's, and not made here.
    """
    d, h = config.embed_dim, config.head_dim
    n, k = config.num_heads, 0 if is_reading else config.num_kv_heads
    projections = 2 * d * h * (2 * n + 2 * k)
    return projections + 4 * n * h * keys + 4 * d * config.mlp_dim


def recomputed_flops(config: Config, keys: float) -> float:
    """Returns the FLOPs of one token that any backward pass computes again: attention's scores."""
    return 2 * config.num_heads * config.head_dim * keys


def cache_entries(config: Config) -> int:
    """Returns how many numbers one step keeps for one token: its key and its value."""
    return 2 * config.num_kv_heads * config.head_dim
