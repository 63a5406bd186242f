"""Pre-norm in which the feed-forward's output replaces the residual stream.

Chain-of-Experts (Wang et al. 2025, arXiv 2506.18945) as released: its feed-forward starts from the
normalised stream and adds to that, and what was not normalised is dropped.
"""

import dataclasses

from jaxtyping import Array

from recursia.blocks.block import Norm
from recursia.blocks.pre_norm import PreNorm


@dataclasses.dataclass(frozen=True)
class ReplacingNorm(PreNorm):
    """A norm before each branch; the mixer alone has a residual connection."""

    is_additive = False

    def after(self, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the sum after the mixer, and the output of the feed-forward after that."""
        return y if name == self.feedforward.norm_name else x + y
