"""The base of feed-forwards."""

import abc

from jaxtyping import Array, Float

from recursia.layers.attention import Context
from recursia.layers.branch import Branch, Report, States
from recursia.params import Params

Carried = Float[Array, "B T P"]  # numbers that a token hands on from step to step


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

    def narrowed(self, part: float, multiple: int) -> "FeedForward":
        """Returns the layer with a part of its hidden units, the first of this one's.

        Args:
          part: in (0, 1].
          multiple: what their number is rounded to, unless they are all.

        Raises:
          ValueError: if hidden units of this kind cannot be left out.
        """
        if part == 1:
            return self
        raise ValueError(
            "weights.hidden: this feed-forward has no hidden units that a step can leave out; "
            "take 1.0, or a feed-forward such as 'swiglu'"
        )

    def carried_dim(self, width: int) -> int:
        """Returns how many numbers each token hands on to the feed-forward of its next step.

        Args:
          width: of the residual stream.
        """
        return 0

    def step(
        self, params: Params, x: States, h: States, carried: Carried, context: Context
    ) -> tuple[States, Carried, Report]:
        """Returns the writes to the residual stream, what is handed on, and a report.

        Args:
          params: see `apply`, as for the others.
          x: states that are transformed.
          h: states that routers and gates read.
          carried: what the feed-forward of the token's last step handed on; zeros in its first.
          context: positions, documents and padding of the tokens.
        """
        y, report = self.apply(params, x, h, context)
        return y, carried, report

    def handed_on(self, h: States, carried: Carried) -> Carried:
        """Returns what a token hands on in a step of another feed-forward, among those of this one.

        Args:
          h: states that routers and gates read there.
          carried: what the token's last step handed on; zeros in its first.
        """
        return carried

    @abc.abstractmethod
    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token.

        Args:
          width: of the residual stream.
        """


def nearest(width: float, multiple: int, most: int) -> int:
    """Returns the multiple nearest to a width, at least one and no more than the most."""
    return min(most, multiple * max(1, round(width / multiple)))
