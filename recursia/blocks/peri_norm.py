"""Peri-norm: x + branch(x, norm(x)), where only queries, keys, gates and routers read norm(x).

"Peri-layernorm" of MoEUT (Csordás et al. 2024, arXiv 2405.16039): values and experts read the
residual stream itself, so that a branch's output scales with its input.
"""

import dataclasses

from jaxtyping import Array

from recursia.blocks.block import Block, Norm


@dataclasses.dataclass(frozen=True)
class PeriNorm(Block):
    """A norm before queries, keys, gates and routers alone."""

    def before(self, x: Array, name: str, norm: Norm) -> tuple[Array, Array]:
        """Returns the stream, and the stream normalised."""
        return x, norm(x, name)

    def after(self, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the sum."""
        return x + y
