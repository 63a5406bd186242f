"""Weight kinds: how the entries of a step's banks become the block's weights."""

import dataclasses
from typing import Any

Tree = dict[str, Any]  # by slot


@dataclasses.dataclass(frozen=True)
class Weights:
    """Base of weight kinds; by itself it leaves weights as they are in their bank.

    A kind is a frozen dataclass of settings, one file in `recursia.sharing`. It may add slots to
    those of the block and replace their specs, and `bind` may put in an array's place any object
    with `dot(x, einsum)` and `full()`, as `recursia.layers.linear` calls them.
    """

    @property
    def exact(self) -> tuple[str, ...]:
        """Its own slots that stay float32 whatever the compute dtype."""
        return ()

    def key_weights(self, block: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Returns (slot, name) of its own weights that only serve to make keys and values.

        Args:
          block: those of the block.
        """
        return ()

    def varies(self, block: Tree) -> dict[str, str]:
        """Returns how the slots vary that it adds or replaces, unless the model says otherwise.

        Args:
          block: specs of one block, by slot.

        Raises:
          ValueError: for a slot that is not there, or that this kind cannot make.
        """
        return {}

    def specs(self, block: Tree) -> Tree:
        """Returns the specs of one entry of each slot in `varies`."""
        return {}

    def applied(self, block: Tree) -> Tree:
        """Returns specs of the parameters that a token's step meets besides the block's own."""
        return self.specs(block)

    def bind(self, entries: Tree) -> Tree:
        """Returns the block's weights by slot, from a step's entries of its slots and its own."""
        return entries

    def flops(self, block: Tree, skipped: tuple[tuple[str, str], ...]) -> int:
        """Returns the forward FLOPs that it adds to one token's step.

        Args:
          block: specs of one block, by slot.
          skipped: the (slot, name) of weights that the step does not use.
        """
        return 0
