"""Rows of a table; or waves of the token's id and an MLP of them, without a table.

With `fourier_dim` an embedding is T + MLP(T) (Ndubuaku & Talhi 2025, arXiv 2505.02266), where T has
the sine and the cosine of k pi x for k = 1, 2, ..., and x runs from -1 to 1 over the vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from recursia import ranges
from recursia.embeddings.embedding import Embedding
from recursia.layers.attention import Context
from recursia.layers.linear import dot
from recursia.layers.norm import zeros
from recursia.layers.past import Past
from recursia.params import Params, Spec, normal


@dataclasses.dataclass(frozen=True)
class Table(Embedding):
    """An embedding of each token by itself.

    Attributes:
      factor_dim: width of the tables of a factorised embedding, which a projection maps to the
        width of the model (Lan et al. 2019, arXiv 1909.11942); 0 does not factorise.
      fourier_dim: hidden width of the MLP that makes embeddings of waves of the token's id; 0 has a
        table instead. The head is then a matrix of its own.
    """

    factor_dim: int = 0
    fourier_dim: int = 0

    def __post_init__(self):
        super().__post_init__()
        ranges.at_least(0, self, "factor_dim", "fourier_dim")
        if self.fourier_dim and self.is_tied:
            raise ValueError(
                f"fourier_dim: {self.fourier_dim} has no table that the head could be; take "
                "is_tied False"
            )

    def row_width(self, embed_dim: int) -> int:
        """Returns the width of the table's rows."""
        return self.factor_dim or embed_dim

    @property
    def width_rule(self) -> str:
        """Says so of the MLP of waves."""
        return "embed.fourier_dim; take 0" if self.fourier_dim else ""

    def specs(self, vocab_size: int, embed_dim: int) -> Params:
        """Returns the tables, or the MLP of waves, and the projection of a factorised embedding."""
        found, width = super().specs(vocab_size, embed_dim), self.row_width(embed_dim)
        if self.fourier_dim:
            del found["table"]
            found = self._mlp(width) | found
        if self.factor_dim:
            # Embeddings and logits then start as large as without factorising.
            init = normal(self.factor_dim**-0.5)
            found["projection"] = Spec((width, embed_dim), (None, "embed"), init)
        return found

    def embed(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        context: Context,
        dtype: DTypeLike,
        past: Past | None = None,
    ) -> tuple[Float[Array, "B T D"], Past | None]:
        """Returns the states of tokens, and `past` as it is."""
        if self.fourier_dim:
            x = _of_waves(params, tokens, dtype)
        else:
            x = params["table"][tokens].astype(dtype)
        if self.factor_dim:
            x = dot(x, params["projection"].astype(dtype), "e,ed->d")
        return self.placed(x, context), past

    def before_head(
        self, params: Params, x: Float[Array, "*B D"], scale: float
    ) -> Float[Array, "*B E"]:
        """Returns normalised states, projected if factorised."""
        x = super().before_head(params, x, scale)
        if "projection" not in params:
            return x
        return dot(x, params["projection"].astype(x.dtype), "d,ed->e")

    def flops(self, embed_dim: int, keys: int | float) -> int | float:
        """Returns those of the MLP of waves and of the projection."""
        return 2 * (self.constant_flops(embed_dim) + self.factor_dim * embed_dim)

    def constant_flops(self, embed_dim: int) -> int:
        """Returns those of the first layer of the MLP of waves."""
        return 2 * self.row_width(embed_dim) * self.fourier_dim

    def head_flops(self, vocab_size: int, embed_dim: int) -> int:
        """Returns those of the head and of the projection."""
        return super().head_flops(vocab_size, embed_dim) + 2 * self.factor_dim * embed_dim

    def _mlp(self, width: int) -> Params:
        """Returns the layers of the MLP of waves, whose output starts as large as its input."""
        layer = lambda inputs, outputs, axes: Spec((inputs, outputs), axes, normal(inputs**-0.5))
        bias = lambda width: Spec((width,), (None,), zeros, is_decayed=False)
        return {
            "up": layer(width, self.fourier_dim, ("embed", "mlp")),
            "up_bias": bias(self.fourier_dim),
            "down": layer(self.fourier_dim, width, ("mlp", "embed")),
            "down_bias": bias(width),
        }


def _of_waves(params: Params, tokens: Int[Array, "B T"], dtype: DTypeLike) -> Float[Array, "B T E"]:
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
