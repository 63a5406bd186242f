"""The base of feed-forwards."""

import abc

from jaxtyping import Array, Float

from recursia.layers.attention import Context
from recursia.layers.branch import Branch, Report
from recursia.params import Leaf


class FeedForward(Branch):
    """What transforms each token alone; `Branch` says what reports may hold."""

    @abc.abstractmethod
    def apply(
        self,
        params: dict[str, Leaf],
        x: Float[Array, "B T D"],
        h: Float[Array, "B T D"],
        context: Context,
    ) -> tuple[Float[Array, "B T D"], Report]:
        """Returns what tokens write to the stream, and a report.

        Args:
          params: by slot, in the compute dtype; those of `exact` in float32.
          x: states whose content is transformed.
          h: states that decide, in routers and gates; most arrangements give `x` again.
          context: where the tokens stand.
        """

    @abc.abstractmethod
    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token in a stream so wide."""
