"""Token embedding and output head.

Embeddings are rows of a table; or, with `fourier_dim`, waves of the token's id and an MLP of them,
without a table (Ndubuaku & Talhi 2025, arXiv 2505.02266): T + MLP(T), where T has the sine and the
cosine of k pi x for k = 1, 2, ..., and x runs from -1 to 1 over the vocabulary.
"""

import dataclasses

import jax
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
      fourier_dim: hidden width of the MLP that makes embeddings of waves of the token's id; 0 has a
        table instead. The head is then a matrix of its own.
      logit_scale: factor of the logits, before the cap and without the bias.
      logit_cap: soft cap of the logits, cap * tanh(logit / cap) (Gemma Team 2024, arXiv
        2408.00118); 0 has none.
    """

    is_tied: bool = True
    init_std: float = 0.02
    head_init_std: float | None = None
    has_head_bias: bool = False
    scale: float = 1.0
    factor_dim: int = 0
    fourier_dim: int = 0
    logit_scale: float = 1.0
    logit_cap: float = 0.0

    def __post_init__(self):
        has_own = self.head_init_std is not None
        ranges.at_least(0, self, "init_std", *(("head_init_std",) if has_own else ()))
        ranges.above(0, self, "scale", "logit_scale")
        ranges.at_least(0, self, "factor_dim", "fourier_dim", "logit_cap")
        if self.fourier_dim and self.is_tied:
            raise ValueError(
                f"fourier_dim: {self.fourier_dim} has no table that the head could be; take "
                "is_tied False"
            )

    def flops(self, embed_dim: int) -> tuple[int, int]:
        """Returns the forward FLOPs of one token's embedding, and those without backward input.

        Args:
          embed_dim: width of the model.
        """
        waves = 2 * (self.factor_dim or embed_dim) * self.fourier_dim
        return 2 * waves + 2 * self.factor_dim * embed_dim, waves


def specs(config: Embedding, vocab_size: int, embed_dim: int) -> dict[str, Spec]:
    """Returns the table, and the head, the bias and the projection if the settings have them."""
    width = config.factor_dim or embed_dim
    table = lambda std: Spec((vocab_size, width), ("vocab", "embed"), normal(std))
    tables = _mlp(config, width) if config.fourier_dim else {"table": table(config.init_std)}
    if not config.is_tied:
        std = config.init_std if config.head_init_std is None else config.head_init_std
        tables["head"] = dataclasses.replace(table(std), is_readout=True)
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
    if config.fourier_dim:
        x = _of_waves(params, tokens, config, dtype)
    else:
        x = params["table"][tokens].astype(dtype)
    if config.factor_dim:
        x = dot(x, params["projection"].astype(dtype), "e,ed->d")
    return x if config.scale == 1 else x * jnp.asarray(config.scale, dtype)


def _mlp(config: Embedding, width: int) -> dict[str, Spec]:
    """Returns the layers of the MLP of waves, whose output starts as large as its input."""
    layer = lambda inputs, outputs, axes: Spec((inputs, outputs), axes, normal(inputs**-0.5))
    bias = lambda width: Spec((width,), (None,), zeros, is_decayed=False)
    return {
        "up": layer(width, config.fourier_dim, ("embed", "mlp")),
        "up_bias": bias(config.fourier_dim),
        "down": layer(config.fourier_dim, width, ("mlp", "embed")),
        "down_bias": bias(width),
    }


def _of_waves(
    params: dict[str, Array], tokens: Int[Array, "B T"], config: Embedding, dtype: DTypeLike
) -> Float[Array, "B T E"]:
    """Returns the waves of each token's id plus an MLP of them."""
    wide = waves(tokens, params["head"].shape[0], params["down"].shape[-1])
    t, weights = wide.astype(dtype), {name: p.astype(dtype) for name, p in params.items()}
    hidden = jax.nn.gelu(dot(t, weights["up"], "e,ef->f") + weights["up_bias"], approximate=False)
    return t + dot(hidden, weights["down"], "f,fe->e") + weights["down_bias"]


def waves(tokens: Int[Array, "*B"], vocab_size: int, width: int) -> Float[Array, "*B E"]:
    """Returns the sine and cosine of k pi x, for k = 1, 2, ..., in float32.

    Ids that are neighbours in a large vocabulary have the same waves in bfloat16.

    Args:
      tokens: ids.
      vocab_size: x is -1 for id 0, and 1 for the last.
      width: number of waves; sines have even indices.
    """
    x = 2 * tokens.astype(jnp.float32) / max(vocab_size - 1, 1) - 1
    index = jnp.arange(width)
    angle = jnp.pi * (index // 2 + 1) * x[..., None]
    return jnp.where(index % 2 == 0, jnp.sin(angle), jnp.cos(angle))


def before_head(
    params: dict[str, Array], x: Float[Array, "*B D"], scale: float
) -> Float[Array, "*B E"]:
    """Returns normalised states in the width that the head reads, projected if factorised.

    Args:
      params: of the embedding.
      x: normalised states.
      scale: factor of the logits.
    """
    if scale != 1:
        x = x * jnp.asarray(scale, x.dtype)
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
