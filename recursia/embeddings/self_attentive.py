"""Self-attentive factorised embeddings (SAFE; Reid et al. 2021, arXiv 2101.00234).

A token's row of a narrow table attends to the rows before it, and an MLP maps the result to the
width of the model. Released as a layer at the bottom of the stack: post-norm, and without a
residual around an MLP whose output is wider than its input.
"""

import dataclasses
from typing import Literal

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from recursia import ranges
from recursia.embeddings.embedding import Embedding
from recursia.layers import affine
from recursia.layers import norm as norms
from recursia.layers.attention import Context
from recursia.layers.past import Past
from recursia.mixers.mixer import Mixer
from recursia.params import Params
from recursia.sharding import constrain

_ACTIVATIONS = {"relu": jax.nn.relu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfAttentive(Embedding):
    """Embeddings that depend on the tokens before: `norm(MLP(norm(row + attention(rows))))`.

    The head reads states through a projection, with a bias, to the width of the table. At the width
    of the model itself the MLP has a residual.

    Attributes:
      table_dim: width of the table's rows, of the attention to them and of the MLP's hidden layer.
      mixer: the attention; `kind` names a module of `recursia.mixers`, without experts.
      activation: of the MLP, "relu" or "gelu".
      norm: as of blocks.
      norm_eps: added to the mean square or the variance that a norm divides by.
    """

    table_dim: int
    mixer: Mixer
    activation: Literal["relu", "gelu"] = "relu"
    norm: norms.Kind = "layer"
    norm_eps: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        ranges.at_least(1, self, "table_dim")
        ranges.at_least(0, self, "norm_eps")
        if self.mixer.slots != ("attention",):
            routed = ", ".join(slot for slot in self.mixer.slots if slot != "attention")
            raise ValueError(
                f"mixer: has {routed}, whose router would be trained without its losses here; take "
                "'grouped_query'"
            )

    def row_width(self, embed_dim: int) -> int:
        """Returns the width of the table's rows."""
        return self.table_dim

    @property
    def attention(self) -> Mixer:
        """The attention."""
        return self.mixer

    @property
    def width_rule(self) -> str:
        """Says so of the projections."""
        return "embed.kind 'self_attentive'; take 'table'"

    def specs(self, vocab_size: int, embed_dim: int) -> Params:
        """Returns the tables, the attention, both layers with their norms, and the projection."""
        d, e = embed_dim, self.table_dim
        return {
            **super().specs(vocab_size, embed_dim),
            **self.mixer.specs(e, num_steps=1),
            "attention_norm": norms.specs(self.norm, e),
            "up": affine.specs(e, e, ("embed", "mlp")),
            "down": affine.specs(e, d, ("mlp", "embed")),
            "norm": norms.specs(self.norm, d),
            "projection": affine.specs(d, e, ("embed", None)),
        }

    def embed(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        context: Context,
        dtype: DTypeLike,
        past: Past | None = None,
    ) -> tuple[Float[Array, "B T D"], Past | None]:
        """Returns the states of tokens, and the KV cache with their keys."""
        tables = ("table", "head", "bias")
        inner = {name: tree for name, tree in params.items() if name not in tables}
        weights = jax.tree.map(lambda leaf: leaf.astype(dtype), inner)
        norm = lambda x, name: norms.normalise(x, weights[name], self.norm_eps)
        x = self.placed(params["table"][tokens].astype(dtype), context)
        x = constrain(x, ("batch", "length", None))
        y, made, _ = self.mixer.apply(weights, x, x, context, past)
        x = norm(x + y, "attention_norm")
        hidden = _ACTIVATIONS[self.activation](affine.apply(weights["up"], x))
        y = affine.apply(weights["down"], hidden)
        y = x + y if x.shape == y.shape else y
        return norm(y, "norm"), made if isinstance(made, Past) else None

    def before_head(
        self, params: Params, x: Float[Array, "*B D"], scale: float
    ) -> Float[Array, "*B E"]:
        """Returns normalised states, projected to the width of the table."""
        cast = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params["projection"])
        return super().before_head(params, affine.apply(cast, x), scale)

    def flops(self, embed_dim: int, keys: int | float) -> int | float:
        """Returns those of the attention and of the MLP."""
        e = self.table_dim
        return self.mixer.forward_flops(e, keys, False) + 2 * e * (e + embed_dim)

    def head_flops(self, vocab_size: int, embed_dim: int) -> int:
        """Returns those of the head and of the projection."""
        return super().head_flops(vocab_size, embed_dim) + 2 * self.table_dim * embed_dim
