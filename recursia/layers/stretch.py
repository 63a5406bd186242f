"""Longer rotary wavelengths, for documents longer than those that a model was trained on."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges


@dataclasses.dataclass(frozen=True)
class Stretch:
    """How much longer rotary wavelengths are made.

    Every one by `factor` (position interpolation, Chen et al. 2023, arXiv 2306.15595); or, with an
    `original_length`, only those of which few fit into it, as in Llama 3.1 (Grattafiori et al.
    2024, arXiv 2407.21783): the ones that fit fewer than `low` times by `factor`, those that fit
    more than `high` times not at all, and those between by something between.

    Attributes:
      factor: by which a wavelength grows; 1 leaves all as they are.
      original_length: tokens of a document in training before; 0 stretches every wavelength.
      low: how often a wavelength fits at most that is stretched in full.
      high: how often one fits at least that is left as it is.
    """

    factor: float = 1.0
    original_length: int = 0
    low: float = 1.0
    high: float = 4.0

    def __post_init__(self):
        ranges.above(0, self, "factor", "low")
        ranges.at_least(0, self, "original_length")
        if not self.low < self.high:
            raise ValueError(f"high: got {self.high}, takes a number above low, {self.low}")

    def of(self, waves: Float[Array, "W"]) -> Float[Array, "W"]:
        """Returns wavelengths over 2 pi, in tokens, stretched."""
        if not self.original_length:
            return waves * self.factor
        fits = self.original_length / (2 * math.pi * waves)
        kept = jnp.clip((fits - self.low) / (self.high - self.low), 0.0, 1.0)
        return waves / ((1 - kept) / self.factor + kept)


NONE = Stretch()
