"""Post-norm: norm(x + branch(x)) (Vaswani et al. 2017, arXiv 1706.03762)."""

import dataclasses

from jaxtyping import Array

from recursia.blocks.block import Block, Norm


@dataclasses.dataclass(frozen=True)
class PostNorm(Block):
    """A norm of each sum; the head needs none."""

    def final_norm(self) -> None:
        """Returns None: the block normalises its own result."""

    def before(self, x: Array, name: str, norm: Norm) -> tuple[Array, Array]:
        """Returns the state as it is."""
        return x, x

    def after(self, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the sum, normalised."""
        return norm(x + y, name)
