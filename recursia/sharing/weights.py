"""Weight kinds: how a step's bank entries become the weights of its block."""

import dataclasses

from recursia.params import Params


@dataclasses.dataclass(frozen=True)
class Weights:
    """Base of weight kinds; by itself it uses bank entries as they are.

    A kind is a frozen dataclass of settings, one file in `recursia.sharing`. It may add slots to
    those of the block and replace their specs. `bind` may replace an array by any object with
    `dot(x, einsum)` and `full()`, as `recursia.layers.linear` calls them.
    """

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

    def varies(self, block: Params) -> dict[str, str]:
        """Returns how the slots that this kind adds or replaces vary by default.

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
