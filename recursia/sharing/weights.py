"""Weight kinds: how a step's bank entries become the weights of its block."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from recursia.params import Params
from recursia.sharing.patterns import Rule
from recursia.sharing.schedule import Schedule

# Of the heads and of the hidden units of a block, in (0, 1], and what the latter are a multiple of.
Part = tuple[float, float, int]


@dataclasses.dataclass(frozen=True)
class Weights:
    """Base of weight kinds; by itself it uses bank entries as they are.

    A kind is a frozen dataclass of settings, one file in `recursia.sharing`. It may add slots to
    those of the block and replace their specs. `bind` may replace an array by any object with
    `dot(x, einsum)` and `full()`, as `recursia.layers.linear` calls them.

    Attributes:
      block: specs of one block, by slot, of a kind that `of` returned.
      steps: the same of each step, by its number, where they differ.
      has_matrices: whether what is stored has inputs and outputs, so that scales by width apply.
    """

    block: ClassVar[Params] = {}  # nothing is known yet
    steps: ClassVar[tuple[Params, ...]] = ()
    has_matrices: ClassVar[bool] = True

    @property
    def exact(self) -> tuple[str, ...]:
        """Slots of this kind that stay float32 whatever the compute dtype."""
        return ()

    def key_weights(self, block: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Returns (slot, name) of this kind's weights that only make keys and values.

        Args:
          block: (slot, name) of the block's weights that only make keys and values.
        """
        return ()

    def varies(self, block: Params) -> Mapping[str, Rule]:
        """Returns how the slots that this kind adds or replaces vary by default.

        A slot may be made of several bank entries in each step: its default is then a function from
        the numbers of recursions and blocks to a table with several in a cell, and `bind` receives
        them along a leading axis.

        Args:
          block: specs of one block, by slot.

        Raises:
          ValueError: for a slot that the block does not have, or that this kind cannot make.
        """
        return {}

    def specs(self, block: Params) -> Params:
        """Returns the specs of one entry of each slot in `varies`."""
        return {}

    def applied(self, block: Params) -> Params:
        """Returns specs of the parameters applied to a token in a step besides the block's own."""
        return self.specs(block)

    def parts(self, num_steps: int) -> tuple[Part, ...]:
        """Returns the part of the block that each step is, in the order of the walk; () is all."""
        return ()

    def moved(self, before: Schedule, after: Schedule) -> "Weights":
        """Returns this kind for a walk of other recursions, whose steps are the parts they were.

        Args:
          before: the schedule.
          after: the same cut or extended; further recursions repeat the last.
        """
        return self

    def of(self, block: Params, steps: tuple[Params, ...] = ()) -> "Weights":
        """Returns this kind with the specs of one block, which `bind` then reads as `block`.

        Args:
          block: by slot.
          steps: of each step, by its number; empty if they are all the block's.
        """
        known = copy.copy(self)
        vars(known).update(block=block, steps=steps)
        return known

    def at_step(self, number: int) -> "Weights":
        """Returns this kind with the specs of one step."""
        return self.of(self.steps[number]) if self.steps else self

    def bind(self, entries: Params) -> Params:
        """Returns the block's weights by slot, from a step's entries of all slots."""
        return entries

    def flops(self, block: Params, skipped: tuple[tuple[str, str], ...]) -> int:
        """Returns the forward FLOPs that this kind adds for one token in one step.

        Args:
          block: specs of one block, by slot.
          skipped: the (slot, name) of weights that the step does not use.
        """
        return 0

    def making_flops(self, block: Params) -> int:
        """Returns the forward FLOPs that make the weights of one step, whatever its tokens.

        They are those that `traced_flops.uncounted` leaves out.
        """
        return 0
