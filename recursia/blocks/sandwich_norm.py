"""Sandwich norm: x + norm(branch(norm(x))) (Ding et al. 2021, arXiv 2105.13290).

The block of Ouro (Zhu et al. 2025, arXiv 2510.25741), where the final norm after each recursion
(`loop_norm` "each") bounds the residual stream.
"""

import dataclasses

from jaxtyping import Array

from recursia.blocks.block import Norm
from recursia.blocks.pre_post_norm import PrePostNorm


@dataclasses.dataclass(frozen=True)
class SandwichNorm(PrePostNorm):
    """A norm before each branch, and one of its output."""

    def after(self, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the sum with the normalised output."""
        return x + norm(y, f"after_{name}")
