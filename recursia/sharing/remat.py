"""Rematerialisation: what the backward pass computes again instead of keeping it."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax

from recursia.sharing.schedule import Order

Unit = Literal["none", "block", "recursion"]
Saves = Literal["nothing", "attention", "products"]
ENTERED = "block_entered"  # name of a block's hidden states, for policies of rematerialisation
_MATMUL = ("grouped_matmul",)
_POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("routed_attention"),
    "products": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        lambda primitive, *_, **__: primitive.name in _MATMUL,
    ),
}


@dataclasses.dataclass(frozen=True)
class Remat:
    """How a training step saves memory.

    Attributes:
      unit: what the backward pass computes again: nothing, each block, or each recursion.
      saves: what it keeps of that all the same: "nothing", what "attention" read with the sums of
        its exponentials, or the "products" with weights.
    """

    unit: Unit = "none"
    saves: Saves = "nothing"

    def wrap(self, f: Callable, length: int = 1) -> Callable:
        """Returns `f` with its inside computed again in the backward pass.

        Args:
          f: a block or a recursion.
          length: steps of the scan that runs it. A scan of length 1 is inlined: there the
            compiler's elimination of common subexpressions must not undo the rematerialisation.
        """
        return jax.checkpoint(f, prevent_cse=length == 1, policy=_POLICIES[self.saves])

    def in_order(self, order: Order) -> "Remat":
        """Returns the same for steps in this order: block by block, no recursion is whole."""
        return self if order == "cycle" else self.of_blocks()

    def of_blocks(self) -> "Remat":
        """Returns the same for blocks that are in no recursion."""
        return dataclasses.replace(self, unit="none" if self.unit == "none" else "block")


KEEP = Remat()  # keeps everything: nothing is computed again
