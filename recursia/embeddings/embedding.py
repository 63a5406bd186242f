"""The base of embeddings: states of token ids, and the output head that reads states."""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from recursia import ranges
from recursia.layers.attention import Context
from recursia.layers.norm import zeros
from recursia.layers.past import Past
from recursia.layers.sinusoids import Wave, sinusoids
from recursia.mixers.mixer import Mixer
from recursia.params import Params, Spec, normal


@dataclasses.dataclass(frozen=True)
class Embedding(abc.ABC):
    """Embedding of tokens and output head, tied or not.

    Attributes:
      is_tied: whether the head is the embedding.
      init_std: standard deviation of the embedding's entries at the start.
      head_init_std: of the head's, where it is not tied; None takes `init_std`.
      has_head_bias: whether the head adds a bias to each logit.
      scale: factor of every embedding.
      position: sinusoidal embedding of a token's position that is added, once: "none",
        "interleaved" or "halves".
      first_position: what positions count from.
      logit_scale: factor of the logits, before the cap and without the bias.
      logit_cap: soft cap of the logits, cap * tanh(logit / cap) (Gemma Team 2024, arXiv
        2408.00118); 0 has none.
    """

    is_tied: bool = True
    init_std: float = 0.02
    head_init_std: float | None = None
    has_head_bias: bool = False
    scale: float = 1.0
    position: Wave = "none"
    first_position: int = 0
    logit_scale: float = 1.0
    logit_cap: float = 0.0

    def __post_init__(self):
        has_own = self.head_init_std is not None
        ranges.at_least(0, self, "init_std", *(("head_init_std",) if has_own else ()))
        ranges.above(0, self, "scale", "logit_scale")
        ranges.at_least(0, self, "first_position", "logit_cap")

    @abc.abstractmethod
    def row_width(self, embed_dim: int) -> int:
        """Returns the width of the table's rows and of what the head reads.

        Args:
          embed_dim: width of the model, as for the others.
        """

    @property
    def attention(self) -> Mixer | None:
        """Attention of embedded tokens to each other, whose keys decoding keeps; None has none."""
        return None

    @property
    def width_rule(self) -> str:
        """Why initial scales follow the width of the model, in words; empty if they do not."""
        return ""

    def check_length(self, length: int) -> None:  # noqa: B027 - most embeddings take every length
        """Refuses lengths of documents that the embedding has no positions for.

        Args:
          length: tokens of the longest.

        Raises:
          ValueError: with both numbers.
        """

    def specs(self, vocab_size: int, embed_dim: int) -> Params:
        """Returns the table, and the head and its bias if the settings have them."""
        shape = vocab_size, self.row_width(embed_dim)
        table = lambda std: Spec(shape, ("vocab", "embed"), normal(std))
        found: Params = {"table": table(self.init_std)}
        if not self.is_tied:
            std = self.init_std if self.head_init_std is None else self.head_init_std
            found["head"] = dataclasses.replace(table(std), is_readout=True)
        if self.has_head_bias:
            found["bias"] = Spec((vocab_size,), ("vocab",), zeros, is_decayed=False)
        return found

    @abc.abstractmethod
    def embed(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        context: Context,
        dtype: DTypeLike,
        past: Past | None = None,
    ) -> tuple[Float[Array, "B T D"], Past | None]:
        """Returns the states of tokens, in `dtype`, and the KV cache with their keys.

        Args:
          params: of `specs`, float32.
          tokens: ids.
          context: positions, documents and padding of the tokens.
          dtype: compute dtype.
          past: the KV cache of `attention` in decoding; None has none.
        """

    def placed(self, x: Float[Array, "B T E"], context: Context) -> Float[Array, "B T E"]:
        """Returns scaled embeddings with those of their positions."""
        x = x if self.scale == 1 else x * jnp.asarray(self.scale, x.dtype)
        if self.position == "none":
            return x
        index = context.positions + self.first_position
        return x + sinusoids(index, x.shape[-1], self.position).astype(x.dtype)

    def before_head(
        self, params: Params, x: Float[Array, "*B D"], scale: float
    ) -> Float[Array, "*B E"]:
        """Returns normalised states in the width that the head reads.

        Args:
          params: of `specs`.
          x: normalised states.
          scale: factor of the logits.
        """
        return x if scale == 1 else x * jnp.asarray(scale, x.dtype)

    def head(self, params: Params) -> dict[str, Array]:
        """Returns the float32 `matrix` [V E] of the head, and its `bias` [V] and `cap` []."""
        found: dict[str, Any] = {"matrix": params["head"] if "head" in params else params["table"]}
        found |= {"bias": params["bias"]} if "bias" in params else {}
        return found | ({"cap": jnp.float32(self.logit_cap)} if self.logit_cap else {})

    def flops(self, embed_dim: int, keys: int | float) -> int | float:
        """Returns the forward FLOPs of one token's embedding.

        Args:
          embed_dim: width of the model.
          keys: tokens of the sequence, which `attention` meets.
        """
        return 0

    def constant_flops(self, embed_dim: int) -> int:
        """Returns those of products with a constant, which need no backward pass towards it."""
        return 0

    def head_flops(self, vocab_size: int, embed_dim: int) -> int:
        """Returns the forward FLOPs of one token's logits."""
        return 2 * vocab_size * self.row_width(embed_dim)


def capped(logits: Float[Array, "*B V"], head: dict[str, Array]) -> Float[Array, "*B V"]:
    """Returns logits with the soft cap of the head, if it has one."""
    return head["cap"] * jnp.tanh(logits / head["cap"]) if "cap" in head else logits
