"""The base of feed-forwards."""

import abc

from recursia.layers.attention import Context
from recursia.layers.branch import Branch, Report, States
from recursia.params import Params


class FeedForward(Branch):
    """A position-wise layer: it transforms each token by itself."""

    @abc.abstractmethod
    def apply(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[States, Report]:
        """Returns the writes to the residual stream, and a report.

        Args:
          params: by slot, in the compute dtype; those of `exact` in float32.
          x: states that are transformed.
          h: states that routers and gates read; `x` again in most arrangements of norms.
          context: positions, documents and padding of the tokens.
        """

    @abc.abstractmethod
    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token.

        Args:
          width: of the residual stream.
        """
