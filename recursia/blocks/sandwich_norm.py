"""Sandwich norm: x + norm(branch(norm(x))) (Ding et al. 2021, arXiv 2105.13290).

The block of Ouro (Zhu et al. 2025, arXiv 2510.25741). The stream passes by every norm: what keeps
it from growing there is the final norm, after each recursion (`loop_norm` "each").
"""

import dataclasses

from jaxtyping import Array

from recursia.blocks.block import Block, Norm


@dataclasses.dataclass(frozen=True)
class SandwichNorm(Block):
    """A norm before each branch, and one of what it adds."""

    @property
    def norm_names(self) -> tuple[str, ...]:
        """Two for each branch."""
        return tuple(n for name in super().norm_names for n in (name, f"after_{name}"))

    def before(self, x: Array, name: str, norm: Norm) -> tuple[Array, Array]:
        """Returns the normalised state."""
        return (h := norm(x, name)), h

    def after(self, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the sum with the normalised branch."""
        return x + norm(y, f"after_{name}")
