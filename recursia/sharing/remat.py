"""Rematerialisation (gradient checkpointing): activations that the backward pass recomputes."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax

from recursia.sharing.schedule import Schedule

Unit = Literal["none", "block", "recursion"]
Saves = Literal["nothing", "attention", "products"]
ENTERED = "block_entered"  # name of a block's input, for policies of jax.checkpoint
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
    """The activations that a training step recomputes in its backward pass to save memory.

    Attributes:
      unit: "none" recomputes nothing, "block" each block, "recursion" each recursion.
      saves: activations of the unit that are stored all the same: "nothing", the outputs
        and log-sum-exps of "attention", or the "products" with weights.
    """

    unit: Unit = "none"
    saves: Saves = "nothing"

    def wrap(self, f: Callable, length: int = 1) -> Callable:
        """Returns `f` with its activations recomputed in the backward pass.

        Args:
          f: a block or a recursion.
          length: iterations of the scan that runs it. A scan of length 1 is inlined; there, CSE
            (elimination of common subexpressions) must not undo the rematerialisation.
        """
        return jax.checkpoint(f, prevent_cse=length == 1, policy=_POLICIES[self.saves])

    def of_steps(self, schedule: Schedule) -> "Remat":
        """Returns the setting for these steps, which may have blocks but no recursions."""
        return self if schedule.has_recursions else self.of_blocks()

    def of_blocks(self) -> "Remat":
        """Returns the setting for blocks outside of recursions."""
        return dataclasses.replace(self, unit="none" if self.unit == "none" else "block")


KEEP = Remat()  # stores all activations
