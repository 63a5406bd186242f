"""Fixed depth: every token takes every recursion. With one recursion it is a plain stack.

Recursive Transformers: Bae et al. 2024, arXiv 2410.20672.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.depth.policy import Aux, Call, Policy, Result
from recursia.injection import Injection
from recursia.layers.attention import Context
from recursia.layers.branch import States
from recursia.params import Params
from recursia.sharing.recursion import Recursion
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Stack


@dataclasses.dataclass(frozen=True)
class Fixed(Policy):
    """The same depth for all tokens.

    Attributes:
      exit_loss: the cross-entropies of training: of the "last" state; of the states after each
        recursion i, "weighted" by i over the sum of all i; or "aggressive", the last plus
        `exit_alpha` times each other (Bae et al. 2024, arXiv 2410.20672).
      exit_alpha: weight of each earlier state under "aggressive".
    """

    is_by_recursion = False
    is_layered = True
    is_uniform = True

    exit_loss: Literal["last", "weighted", "aggressive"] = "last"
    exit_alpha: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        ranges.at_least(0, self, "exit_alpha")

    def check(self, schedule: Schedule, coda: int, inject: Injection) -> None:
        """Refuses exit losses of a walk without recursions, or before a coda."""
        if self.exit_loss == "last":
            return
        if schedule.order == "sequence":
            raise ValueError(
                f"depth.exit_loss: {self.exit_loss!r} reads the state after each recursion, and "
                "sharing 'sequence' runs block by block; take a cycle, or 'last'"
            )
        if schedule.is_cyclic:
            raise ValueError(
                f"depth.exit_loss: {self.exit_loss!r} reads the state after each recursion, and "
                "under this kv_sharing steps read keys of later ones and run several times; take "
                "another kv_sharing, or 'last'"
            )
        if coda:
            raise ValueError(
                f"depth.exit_loss: {self.exit_loss!r} reads each recursion's state through the "
                f"head, and {coda} blocks of coda stand between; take sharing 'cycle', or 'last'"
            )

    def run(self, stack: Stack, params: Params, x: States, context: Context, call: Call) -> Result:
        """Returns the states after all recursions; the modes differ in the passes of a cycle."""
        depth_used = jnp.full(x.shape[:2], stack.schedule.num_recursions)
        is_read = call.mode != "train" or self.exit_loss != "last"
        if not stack.schedule.has_recursions or (not is_read and stack.can_walk):
            x, report = stack.walk(x, context, is_exact=call.mode == "causal")
            return x, Aux({}, {}, depth_used, None, report)

        def step(x: Array, recursion: Recursion, _: None):
            y, made = recursion.run(recursion.enter(x, context), context)
            return y, y, made

        x, states, report, _ = stack.loop(step, x)
        weights = None
        if self.exit_loss != "last" and call.mode == "train":
            weights = jnp.broadcast_to(self.exit_weights()[:, None, None], states.shape[:3])
        return x, Aux({}, {}, depth_used, states, report, weights)

    def exit_weights(self) -> Float[Array, "R"]:
        """Returns the weight of the cross-entropy after each recursion."""
        depth = jnp.arange(1.0, self.num_recursions + 1)
        if self.exit_loss == "weighted":
            return depth / depth.sum()
        return jnp.where(depth == self.num_recursions, 1.0, self.exit_alpha)

    @property
    def num_exits(self) -> int:
        """Number of states that training reads through the head."""
        return 1 if self.exit_loss == "last" else self.num_recursions
