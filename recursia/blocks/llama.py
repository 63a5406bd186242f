"""The Llama block: pre-norm, rotary grouped-query attention, SwiGLU.

Touvron et al. 2023, arXiv 2302.13971.
"""

import dataclasses
from typing import Any

from jaxtyping import Array, Float

from recursia import ranges
from recursia.layers.attention import Context, KeysValues, attend
from recursia.layers.linear import dot
from recursia.layers.mlp import swiglu
from recursia.layers.norm import rms_norm, rms_specs
from recursia.layers.rotary import rotate
from recursia.params import Spec, normal

SLOTS = ("norms", "attention", "mlp")
FLOAT32 = ()  # slots whose weights are not cast to the compute dtype
SOURCE = (("attention", "key"), ("attention", "value"))  # weights that a reading step leaves out


@dataclasses.dataclass(frozen=True)
class Config:
    """Widths of the block.

    Attributes:
      embed_dim: width of the residual stream.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`.
      head_dim: width of a head; even, for the rotation.
      mlp_dim: hidden width of the SwiGLU.
      rope_base: base of the rotary wavelengths.
      norm_eps: added to the mean square of RMSNorm.
      init_std: standard deviation of every matrix at the start.
    """

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self):
        ranges.at_least(1, self, "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
        ranges.above(0, self, "rope_base")
        ranges.at_least(0, self, "norm_eps", "init_std")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} query heads do not divide over num_kv_heads "
                f"{self.num_kv_heads}; take a multiple of {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim: got {self.head_dim}, takes an even number (rotary halves)")


def specs(config: Config, num_steps: int) -> dict[str, Any]:
    """Returns the specs of one block, by slot; their scales do not depend on the depth."""
    d, f, h = config.embed_dim, config.mlp_dim, config.head_dim
    n, k = config.num_heads, config.num_kv_heads
    scale = rms_specs(d)
    matrix = lambda shape, axes, inputs=1: Spec(shape, axes, normal(config.init_std), inputs=inputs)
    return {
        "norms": {"attention": scale, "mlp": scale},
        "attention": {
            "query": matrix((d, n, h), ("embed", "heads", None)),
            "key": matrix((d, k, h), ("embed", "kv_heads", None)),
            "value": matrix((d, k, h), ("embed", "kv_heads", None)),
            "out": matrix((n, h, d), ("heads", None, "embed"), inputs=2),
        },
        "mlp": {
            "gate": matrix((d, f), ("embed", "mlp")),
            "up": matrix((d, f), ("embed", "mlp")),
            "down": matrix((f, d), ("mlp", "embed")),
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
    h = rms_norm(x, params["norms"]["attention"], config.norm_eps)
    query = rotate(dot(h, weights["query"], "d,dnh->nh"), context.positions, config.rope_base)
    made = None
    if source is None:
        m = h if memory is None else rms_norm(memory, params["norms"]["attention"], config.norm_eps)
        key = rotate(dot(m, weights["key"], "d,dkh->kh"), context.positions, config.rope_base)
        made = KeysValues(key, dot(m, weights["value"], "d,dkh->kh"))
        source = made, context
    mixed = attend(query, source[0], context, source[1])
    x = x + dot(mixed, weights["out"], "nh,nhd->d")
    h = rms_norm(x, params["norms"]["mlp"], config.norm_eps)
    return x + swiglu(params["mlp"], h), made, {}


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
    return projections + 4 * n * h * keys + 6 * d * config.mlp_dim


def recomputed_flops(config: Config, keys: float) -> float:
    """Returns the FLOPs of one token that any backward pass computes again: attention's scores."""
    return 2 * config.num_heads * config.head_dim * keys


def cache_entries(config: Config) -> int:
    """Returns how many numbers one step keeps for one token: its key and its value."""
    return 2 * config.num_kv_heads * config.head_dim
