"""Token embedding and output head."""

import dataclasses
from typing import Any

from jaxtyping import Array, Float, Int

from recursia.params import Spec, normal


@dataclasses.dataclass(frozen=True)
class Config:
    """Tables that stand between tokens and hidden states.

    Attributes:
      is_tied: whether the head is the embedding.
      init_std: standard deviation of their entries at the start.
    """

    is_tied: bool = True
    init_std: float = 0.02


def specs(config: Config, vocab_size: int, embed_dim: int) -> dict[str, Spec]:
    """Returns the embedding, and the head where it is not tied."""
    table = Spec((vocab_size, embed_dim), ("vocab", "embed"), normal(config.init_std))
    return {"table": table} if config.is_tied else {"table": table, "head": table}


def lookup(params: dict[str, Any], tokens: Int[Array, "B T"], dtype: Any) -> Float[Array, "B T D"]:
    """Returns the embedding of each token, in `dtype`."""
    return params["table"][tokens].astype(dtype)


def head(params: dict[str, Any]) -> Float[Array, "V D"]:
    """Returns the float32 weight that turns hidden states into logits."""
    return params["head"] if "head" in params else params["table"]
