"""Post-norm: norm(x + branch(x)) (Vaswani et al. 2017, arXiv 1706.03762)."""

import dataclasses

from jaxtyping import Array

from recursia.blocks.block import Block, Norm


@dataclasses.dataclass(frozen=True)
class PostNorm(Block):
    """A norm of each residual sum, and none before the head."""

    is_additive = False

    def final_norm(self) -> None:
        """Returns None: the block ends in a norm."""

    def before(self, x: Array, name: str, norm: Norm) -> tuple[Array, Array]:
        """Returns the stream twice."""
        return x, x

    def after(self, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the sum, normalised."""
        return norm(x + y, name)
