"""Pre-norm: x + branch(norm(x)) (Xiong et al. 2020, arXiv 2002.04745)."""

import dataclasses

from jaxtyping import Array

from recursia.blocks.block import Block, Norm


@dataclasses.dataclass(frozen=True)
class PreNorm(Block):
    """A norm before each branch."""

    def before(self, x: Array, name: str, norm: Norm) -> tuple[Array, Array]:
        """Returns the normalised stream twice."""
        return (h := norm(x, name)), h

    def after(self, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the sum."""
        return x + y
