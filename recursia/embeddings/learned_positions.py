"""Rows of a table of tokens and of a table of positions (Radford et al. 2019, GPT-2)."""

import dataclasses

from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from recursia import ranges
from recursia.embeddings.embedding import Embedding
from recursia.layers.attention import Context
from recursia.layers.past import Past
from recursia.params import Params, Spec, normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedPositions(Embedding):
    """`(token + position) * scale`, of the token's and of its position's row.

    Attributes:
      num_positions: rows of the table of positions: a document has at most so many tokens, less
        `first_position`.
    """

    num_positions: int

    def __post_init__(self):
        super().__post_init__()
        ranges.at_least(1, self, "num_positions")
        if self.first_position >= self.num_positions:
            raise ValueError(
                f"first_position: got {self.first_position}, and the last of num_positions "
                f"{self.num_positions} is {self.num_positions - 1}; take a smaller one"
            )
        if self.position != "none":
            raise ValueError(
                f"position: {self.position!r} adds positions a second time; take 'none'"
            )

    def row_width(self, embed_dim: int) -> int:
        """Returns the width of the model."""
        return embed_dim

    def check_length(self, length: int) -> None:
        """Refuses documents whose last positions have no row."""
        if length + self.first_position > self.num_positions:
            raise ValueError(
                f"model.embed.num_positions: {self.num_positions} positions from "
                f"{self.first_position} on are too few for {length} tokens; take "
                f"{length + self.first_position}, or a train.seq_len of "
                f"{self.num_positions - self.first_position}"
            )

    def specs(self, vocab_size: int, embed_dim: int) -> Params:
        """Returns both tables, and the head and its bias if the settings have them."""
        shape, init = (self.num_positions, embed_dim), normal(self.init_std)
        positions = Spec(shape, (None, "embed"), init, is_matrix=False)
        return {**super().specs(vocab_size, embed_dim), "positions": positions}

    def embed(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        context: Context,
        dtype: DTypeLike,
        past: Past | None = None,
    ) -> tuple[Float[Array, "B T D"], Past | None]:
        """Returns the states of tokens, and `past` as it is."""
        index = context.positions + self.first_position
        x = params["table"][tokens] + params["positions"][index]
        return self.placed(x.astype(dtype), context), past
