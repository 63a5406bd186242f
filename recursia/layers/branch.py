"""The base of a branch of a residual block: what mixers and feed-forwards have in common."""

import abc
from typing import Any, ClassVar

from jaxtyping import Array, Float

from recursia.params import Leaf

Params = dict[str, Leaf]  # a tree by slot: of specs, then of one entry of each slot's bank
States = Float[Array, "B T D"]  # hidden states, in the compute dtype
Report = dict[str, Any]  # trees of statistics by slot: sums over the tokens of a row [B ...]
STATES = "states"  # beside the slots of a report: states after a step, where they are kept
Losses = dict[str, Array]  # scalars by name


class Branch(abc.ABC):
    """A frozen dataclass of settings with the parameters and losses of one branch of a block.

    A report holds sums over tokens, by slot; reports of all uses of one entry of the slot's bank
    are added. Each device sees its own rows only: a statistic over the batch that is no sum over
    tokens must go through `recursia.batch.mean` or `recursia.batch.total`, or several devices
    give another result than one.

    Attributes:
      norm_name: name of the branch's norm in the slot "norms".
      slots: names of the branch's slots; each slot can be shared across depth, or not, by itself.
      exact: slots whose weights stay float32 whatever the compute dtype.
      common: slots of which all steps of the core use one entry, whatever they share else.
      uses: slots of the other branch of its block, whose weights it uses too: their gradients add.
      followers: slots of one array that `after_step` changes; they get no gradient.
    """

    norm_name: ClassVar[str]
    slots: ClassVar[tuple[str, ...]]
    exact: ClassVar[tuple[str, ...]] = ()
    common: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    followers: ClassVar[tuple[str, ...]] = ()

    @property
    def is_incremental(self) -> bool:
        """Whether later tokens leave what it does with a token as it is, so that it may be kept."""
        return True

    @abc.abstractmethod
    def specs(self, width: int, num_steps: int) -> Params:
        """Returns a tree of specs for each slot.

        Args:
          width: of the residual stream.
          num_steps: effective depth, on which initial scales may depend.
        """

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns terms of the training loss in nats per token, and metrics.

        Args:
          reports: of this branch's slots, summed over the uses of each bank entry; entries are the
            leading axis.
        """
        return {}, {}

    def after_step(self, bank: Array, metrics: dict[str, Array]) -> Array:
        """Returns the parameters of a slot of `followers` after an update.

        Args:
          bank: the slot's array of the core, then of prelude and coda, along the leading axis, in
            the order of `losses`.
          metrics: of the step.
        """
        return bank

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the names of nonzero loss weights whose loss is no sum over tokens."""
        return ()
