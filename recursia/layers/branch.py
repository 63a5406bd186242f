"""What mixers and feed-forwards have in common."""

import abc
from typing import Any, ClassVar

from jaxtyping import Array

from recursia.params import Leaf

Report = dict[str, Any]  # trees of sums by slot: over the tokens of a row [B ...], or over all
Losses = dict[str, Array]  # scalars by name


class Branch(abc.ABC):
    """A frozen dataclass of settings with the parameters and losses of one branch of a block.

    A report holds sums over tokens, by slot; reports of all uses of one entry of the slot's bank
    are added. Each device sees its own rows only: a statistic over the batch that is no sum over
    tokens must go through `recursia.batch.mean` or `recursia.batch.total`, or several devices
    differ from one.

    Attributes:
      norm_name: name of its norm in the slot "norms".
      slots: names of its slots, which can be shared apart.
      exact: those whose weights stay float32 whatever the compute dtype.
    """

    norm_name: ClassVar[str]
    slots: ClassVar[tuple[str, ...]]
    exact: ClassVar[tuple[str, ...]] = ()

    @property
    def is_incremental(self) -> bool:
        """Whether later tokens leave what it does with a token as it is, so that it may be kept."""
        return True

    @abc.abstractmethod
    def specs(self, width: int, num_steps: int) -> dict[str, Leaf]:
        """Returns a tree of specs for each slot.

        Args:
          width: of the residual stream.
          num_steps: effective depth, on which initial scales may depend.
        """

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns terms of the training loss in nats per token, and metrics.

        Args:
          reports: of its slots, summed over the uses of each bank entry, entries in front.
        """
        return {}, {}

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the fields that weigh losses in force which are no sums over tokens."""
        return ()
