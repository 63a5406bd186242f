"""Pre-norm and post-norm: norm(x + branch(norm(x))).

The block of Huginn (Geiping et al. 2025, arXiv 2502.05171), which calls it a sandwich.
"""

import dataclasses

from jaxtyping import Array

from recursia.blocks.block import Norm
from recursia.blocks.pre_norm import PreNorm


@dataclasses.dataclass(frozen=True)
class PrePostNorm(PreNorm):
    """A norm before each branch, and one of each residual sum."""

    is_additive = False

    @property
    def norm_names(self) -> tuple[str, ...]:
        """Two for each branch."""
        return tuple(n for name in super().norm_names for n in (name, f"after_{name}"))

    def after(self, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the normalised sum."""
        return norm(x + y, f"after_{name}")
