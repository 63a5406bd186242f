"""Peri-norm: x + branch(x), which reads norm(x) only where it decides something.

"Peri-layernorm" of MoEUT (Csordás et al. 2024, arXiv 2405.16039): queries, keys, gates and routers
read normalised states; values and what experts are given are raw, so that what a branch gives grows
with what it is given.
"""

import dataclasses

from jaxtyping import Array

from recursia.blocks.block import Block, Norm


@dataclasses.dataclass(frozen=True)
class PeriNorm(Block):
    """A norm of what decides, and none of what is passed on."""

    def before(self, x: Array, name: str, norm: Norm) -> tuple[Array, Array]:
        """Returns the state as it is, and normalised."""
        return x, norm(x, name)

    def after(self, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the sum."""
        return x + y
