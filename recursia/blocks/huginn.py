"""The sandwich block of Huginn: a norm before each branch, and one of its sum with the stream.

Geiping et al. 2025, arXiv 2502.05171: rotary attention with biased queries and keys, and a gated
MLP. All norms are root-mean-square, and the stream itself passes through the outer two.
"""

import dataclasses
import math
from typing import Any

import jax
from jaxtyping import Array, Float

from recursia import ranges
from recursia.layers.attention import Context, KeysValues, attend
from recursia.layers.linear import dot
from recursia.layers.mlp import swiglu
from recursia.layers.norm import rms_norm, rms_specs, zeros
from recursia.layers.rotary import rotate
from recursia.params import Initializer, Spec

SLOTS = ("norms", "attention", "mlp")
FLOAT32 = ()  # slots whose weights are not cast to the compute dtype
SOURCE = (("attention", "key"), ("attention", "key_bias"), ("attention", "value"))


@dataclasses.dataclass(frozen=True)
class Config:
    """Widths of the block.

    Attributes:
      embed_dim: width of the residual stream.
      num_heads: heads of queries, keys and values.
      head_dim: width of a head; even, for the rotation.
      mlp_dim: hidden width of the gated MLP.
      rope_base: base of the rotary wavelengths.
      norm_eps: added to the mean square of RMSNorm.
    """

    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    rope_base: float = 50_000.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        ranges.at_least(1, self, "embed_dim", "num_heads", "head_dim", "mlp_dim")
        ranges.above(0, self, "rope_base")
        ranges.at_least(0, self, "norm_eps")
        if self.head_dim % 2:
            raise ValueError(f"head_dim: got {self.head_dim}, takes an even number (rotary pairs)")


def _truncated(std: float) -> Initializer:
    """Returns an initializer of normal entries, none further than three deviations from 0."""
    return jax.nn.initializers.truncated_normal(std, lower=-3.0, upper=3.0)


def specs(config: Config, num_steps: int) -> dict[str, Any]:
    """Returns the specs of one block, by slot.

    What writes to the stream starts smaller by the root of twice the effective depth, after Takase
    et al. 2023 (arXiv 2312.16903); so does the MLP's linear branch, as in the released code.
    """
    d, f, n, h = config.embed_dim, config.mlp_dim, config.num_heads, config.head_dim
    wide = math.sqrt(2 / (5 * d))
    narrow = wide / math.sqrt(2 * num_steps)
    matrix = lambda shape, axes, std, inputs=1: Spec(shape, axes, _truncated(std), inputs=inputs)
    heads = matrix((d, n, h), ("embed", "heads", None), wide)
    bias = Spec((n, h), ("heads", None), zeros, is_decayed=False)
    scale = rms_specs(d)
    return {
        "norms": {
            "attention": scale,
            "after_attention": scale,
            "mlp": scale,
            "after_mlp": scale,
        },
        "attention": {
            "query": heads,
            "query_bias": bias,
            "key": heads,
            "key_bias": bias,
            "value": heads,
            "out": matrix((n, h, d), ("heads", None, "embed"), narrow, inputs=2),
        },
        "mlp": {
            "gate": matrix((d, f), ("embed", "mlp"), wide),
            "up": matrix((d, f), ("embed", "mlp"), narrow),
            "down": matrix((f, d), ("mlp", "embed"), narrow),
        },
    }


def final_norm(config: Config) -> Spec:
    """Returns the norm between the last block and the head."""
    return rms_specs(config.embed_dim)


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
      config: widths.
      source: keys and values to read instead of the block's own, with their tokens' context.
      memory: states of the same tokens to make keys and values from, instead of `x`.

    Returns:
      The new hidden states, the keys and values made (None if `source` was read), and what the
      block reports: nothing.
    """
    weights = params["attention"]
    norm = lambda x, name: rms_norm(x, params["norms"][name], config.norm_eps)

    def heads(h: Array, name: str) -> Array:
        biased = dot(h, weights[name], "d,dnh->nh") + weights[f"{name}_bias"]
        return rotate(biased, context.positions, config.rope_base, "interleaved")

    h = norm(x, "attention")
    query, made = heads(h, "query"), None
    if source is None:
        m = h if memory is None else norm(memory, "attention")
        made = KeysValues(heads(m, "key"), dot(m, weights["value"], "d,dnh->nh"))
        source = made, context
    mixed = attend(query, source[0], context, source[1])
    x = norm(x + dot(mixed, weights["out"], "nh,nhd->d"), "after_attention")
    x = norm(x + swiglu(params["mlp"], norm(x, "mlp")), "after_mlp")
    return x, made, {}


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
    d, heads = config.embed_dim, config.num_heads * config.head_dim
    projections = 2 if is_reading else 4
    return 2 * projections * d * heads + 4 * heads * keys + 6 * d * config.mlp_dim


def recomputed_flops(config: Config, keys: float) -> float:
    """Returns the FLOPs of one token that any backward pass computes again: attention's scores."""
    return 2 * config.num_heads * config.head_dim * keys


def cache_entries(config: Config) -> int:
    """Returns how many numbers one step keeps for one token: its key and its value."""
    return 2 * config.num_heads * config.head_dim
