"""Pre-norm with both branches at once: x + mixer(norm(x)) + feedforward(norm(x)).

Each branch has its own norm, as in GPT-NeoX (Black et al. 2022, arXiv 2204.06745) and Pythia.
"""

import dataclasses

from jaxtyping import Array

from recursia.blocks.pre_norm import PreNorm


@dataclasses.dataclass(frozen=True)
class ParallelNorm(PreNorm):
    """A norm before each branch; both branches read the stream that entered the block."""

    def between(self, x: Array, mixed: Array) -> Array:
        """Returns the stream that entered the block."""
        return x
