"""The block of looped language models: a norm before each branch and one after it.

Zhu et al. 2025, arXiv 2510.25741. Attention and SwiGLU are Llama's. The outer norms are of what a
branch adds: the stream itself passes by every norm of the block. What keeps it from growing is the
final norm, which as published stands after each recursion (`loop_norm` "each").
"""

import dataclasses
from typing import Any

from jaxtyping import Array, Float

from recursia.blocks import llama
from recursia.layers.attention import Context, KeysValues, attend
from recursia.layers.linear import dot
from recursia.layers.mlp import swiglu
from recursia.layers.norm import rms_norm, rms_specs
from recursia.layers.rotary import rotate
from recursia.params import Spec

SLOTS = ("norms", "attention", "mlp")
FLOAT32 = ()  # slots whose weights are not cast to the compute dtype
SOURCE = llama.SOURCE  # weights that a reading step leaves out


@dataclasses.dataclass(frozen=True)
class Config(llama.Config):
    """Widths of the block: those of Llama's, with the released base of wavelengths and epsilon."""

    rope_base: float = 1_000_000.0
    norm_eps: float = 1e-6


def specs(config: Config, num_steps: int) -> dict[str, Any]:
    """Returns the specs of one block, by slot; their scales do not depend on the depth."""
    scale = rms_specs(config.embed_dim)
    names = ("attention", "after_attention", "mlp", "after_mlp")
    return {**llama.specs(config, num_steps), "norms": {name: scale for name in names}}


def final_norm(config: Config) -> Spec:
    """Returns the norm after every recursion, which the head reads."""
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
    turn = lambda heads: rotate(heads, context.positions, config.rope_base)
    h = norm(x, "attention")
    query, made = turn(dot(h, weights["query"], "d,dnh->nh")), None
    if source is None:
        m = h if memory is None else norm(memory, "attention")
        key, value = (dot(m, weights[name], "d,dkh->kh") for name in ("key", "value"))
        made = KeysValues(turn(key), value)
        source = made, context
    mixed = attend(query, source[0], context, source[1])
    x = x + norm(dot(mixed, weights["out"], "nh,nhd->d"), "after_attention")
    return x + norm(swiglu(params["mlp"], norm(x, "mlp")), "after_mlp"), made, {}


def losses(config: Config, reports: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns no losses and no metrics."""
    return {}, {}


# Norms are not counted, and all else is Llama's.
forward_flops = llama.forward_flops
recomputed_flops = llama.recomputed_flops
cache_entries = llama.cache_entries
