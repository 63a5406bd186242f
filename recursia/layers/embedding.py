"""Token embedding and output head."""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from recursia import ranges
from recursia.layers.linear import dot
from recursia.layers.norm import zeros
from recursia.params import Spec, normal


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Embedding table and output head, tied or not.

    Attributes:
      is_tied: whether the head is the embedding.
      init_std: standard deviation of the embedding's entries at the start.
      head_init_std: of the head's, where it is not tied; None takes `init_std`.
      has_head_bias: whether the head adds a bias to each logit.
      scale: factor of every embedding.
      factor_dim: width of the tables of a factorised embedding, which a projection maps to the
        width of the model (Lan et al. 2019, arXiv 1909.11942); 0 does not factorise.
      logit_cap: soft cap of the logits, cap * tanh(logit / cap) (Gemma Team 2024, arXiv
        2408.00118); 0 has none.
    """

    is_tied: bool = True
    init_std: float = 0.02
    head_init_std: float | None = None
    has_head_bias: bool = False
    scale: float = 1.0
    factor_dim: int = 0
    logit_cap: float = 0.0

    def __post_init__(self):
        has_own = self.head_init_std is not None
        ranges.at_least(0, self, "init_std", *(("head_init_std",) if has_own else ()))
        ranges.above(0, self, "scale")
        ranges.at_least(0, self, "factor_dim", "logit_cap")


def specs(config: Embedding, vocab_size: int, embed_dim: int) -> dict[str, Spec]:
    """Returns the table, and the head, the bias and the projection if the settings have them."""
    width = config.factor_dim or embed_dim
    table = lambda std: Spec((vocab_size, width), ("vocab", "embed"), normal(std))
    tables = {"table": table(config.init_std)}
    if not config.is_tied:
        std = config.init_std if config.head_init_std is None else config.head_init_std
        tables["head"] = table(std)
    if config.has_head_bias:
        tables["bias"] = Spec((vocab_size,), ("vocab",), zeros, is_decayed=False)
    if config.factor_dim:
        # Embeddings and logits then start as large as without factorising.
        std = config.factor_dim**-0.5
        tables["projection"] = Spec((width, embed_dim), (None, "embed"), normal(std))
    return tables


def lookup(
    params: dict[str, Array], tokens: Int[Array, "B T"], config: Embedding, dtype: DTypeLike
) -> Float[Array, "B T D"]:
    """Returns the embedding of each token, in `dtype`."""
    x = params["table"][tokens].astype(dtype)
    if config.factor_dim:
        x = dot(x, params["projection"].astype(dtype), "e,ed->d")
    return x if config.scale == 1 else x * jnp.asarray(config.scale, dtype)


def before_head(params: dict[str, Array], x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
    """Returns normalised states in the width that the head reads: projected if factorised."""
    if "projection" not in params:
        return x
    return dot(x, params["projection"].astype(x.dtype), "d,ed->e")


def head(params: dict[str, Array], config: Embedding) -> dict[str, Array]:
    """Returns the float32 `matrix` [V E] of the output layer, and its `bias` [V] and `cap` []."""
    found = {"matrix": params["head"] if "head" in params else params["table"]}
    found |= {"bias": params["bias"]} if "bias" in params else {}
    return found | ({"cap": jnp.float32(config.logit_cap)} if config.logit_cap else {})


def capped(logits: Float[Array, "*B V"], head: dict[str, Array]) -> Float[Array, "*B V"]:
    """Returns logits with the soft cap of the head, if it has one."""
    return head["cap"] * jnp.tanh(logits / head["cap"]) if "cap" in head else logits
