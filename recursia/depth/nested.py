"""Hierarchical recurrence of HRM-Text: recursions of low blocks inside cycles of high blocks.

Each high cycle takes `low_cycles` recursions of the low blocks, z_L <- L(z_L + z_H), and one of the
high blocks, z_H <- H(z_H + z_L). z_H starts as the states that enter the core, z_L as a constant
vector that is never trained. Both are recursions of one stack, with bank entries of their own. The
gradient is truncated to the last low recursions of each high cycle: the others store nothing for
the backward pass.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from recursia import ranges
from recursia.depth.policy import Aux, Call, Pass, Policy, Result
from recursia.injection import Injection
from recursia.layers.attention import Context
from recursia.layers.branch import Report, States
from recursia.layers.norm import zeros
from recursia.params import Params, Spec
from recursia.sharing.recursion import Recursion, RecursionOutput
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Stack


@dataclasses.dataclass(frozen=True)
class Nested(Policy):
    """Two levels of recursion; `num_recursions` counts those of both.

    Attributes:
      high_cycles: recursions of the high blocks; divides `num_recursions`. All other recursions
        are of the low blocks.
      low_backprop: for each of the last high cycles, the number of its last low recursions that the
        gradient goes through, at most all; 1 in the cycles before.
    """

    is_uniform = True

    high_cycles: int = 2
    low_backprop: tuple[int, ...] = (2,)

    def __post_init__(self):
        super().__post_init__()
        ranges.at_least(1, self, "high_cycles")
        if self.num_recursions % self.high_cycles or self.low_cycles < 1:
            raise ValueError(
                f"high_cycles: {self.high_cycles} cycles of at least a low and a high recursion do "
                f"not divide num_recursions {self.num_recursions}; take a multiple of "
                f"{self.high_cycles}, at least {2 * self.high_cycles}"
            )
        if not all(count >= 0 for count in self.low_backprop):
            raise ValueError(f"low_backprop: got {self.low_backprop}, takes numbers of at least 0")

    @property
    def low_cycles(self) -> int:
        """Recursions of the low blocks in each high cycle."""
        return self.num_recursions // self.high_cycles - 1

    @property
    def groups(self) -> tuple[int, ...]:
        """The group of blocks of each recursion: 0 low, 1 high."""
        return (*(0,) * self.low_cycles, 1) * self.high_cycles

    def _trained(self) -> tuple[int, ...]:
        """Returns how many low recursions of each high cycle have a gradient."""
        last = self.low_backprop[max(len(self.low_backprop) - self.high_cycles, 0) :]
        every = (1,) * (self.high_cycles - len(last)) + last
        return tuple(min(count, self.low_cycles) for count in every)

    def specs(self, schedule: Schedule, embed_dim: int) -> Params:
        """Returns the initial low state, a vector."""
        return {"low_start": Spec((embed_dim,), (None,), zeros, is_decayed=False)}

    def check(self, schedule: Schedule, coda: int, inject: Injection) -> None:
        """Refuses recursions that read keys and values of another, as some have no gradient."""
        super().check(schedule, coda, inject)
        if any(schedule.is_reader(r) for r in range(schedule.num_recursions)):
            raise ValueError(
                "kv_sharing: a recursion reads keys and values of another, and under depth nested "
                "some recursions have no gradient; take 'own'"
            )

    def run(self, stack: Stack, params: Params, x: States, context: Context, call: Call) -> Result:
        """Returns the high states after all cycles; the modes do not differ."""
        low = jnp.broadcast_to(jax.lax.stop_gradient(params["low_start"]), x.shape)
        high, low, outs = x, low.astype(x.dtype), []
        for cycle, trained in enumerate(self._trained()):
            first = cycle * (self.low_cycles + 1)
            cut, last = first + self.low_cycles - trained, first + self.low_cycles
            if cut > first:
                fixed = jax.lax.stop_gradient((low, high))
                low, *out = self._low(stack, *fixed, context, range(first, cut))
                low = jax.lax.stop_gradient(low)
                outs.append(out)
            if last > cut:
                low, *out = self._low(stack, low, high, context, range(cut, last))
                outs.append(out)

            def step(
                high: Array, recursion: Recursion, _: None, low: Array = low
            ) -> tuple[Array, Array, RecursionOutput]:
                y, made = recursion.run(recursion.enter(high + low, context), context)
                return y, y, made

            high, *out, _ = stack.loop(step, high, recursions=range(last, last + 1))
            outs.append(out)
        states, report = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outs)
        return high, Aux({}, {}, jnp.full(x.shape[:2], self.num_recursions), states, report)

    def _low(
        self, stack: Stack, low: Array, high: Array, context: Context, recursions: range
    ) -> tuple[Array, Array, Report]:
        """Returns the low states after some recursions, `high` for each of them, and reports."""

        def step(low: Array, recursion: Recursion, _: None) -> tuple[Array, Array, RecursionOutput]:
            y, made = recursion.run(recursion.enter(low + high, context), context)
            return y, high, made

        return stack.loop(step, low, recursions=recursions)[:3]

    def at_depth(self, num_recursions: int) -> "Policy":
        """Returns the policy with another number of high cycles; refuses a fraction of a cycle."""
        cycle = self.low_cycles + 1
        if num_recursions % cycle:
            raise ValueError(
                f"depth {num_recursions}: nested takes whole high cycles of {cycle} recursions; "
                f"take a multiple of {cycle}"
            )
        return dataclasses.replace(
            self, num_recursions=num_recursions, high_cycles=num_recursions // cycle
        )

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns a pass of all tokens per recursion, with a gradient or without."""
        is_trained = []
        for trained in self._trained():
            is_trained += [False] * (self.low_cycles - trained) + [True] * (trained + 1)
        return [Pass(r, seq_len, is_trained=trains) for r, trains in enumerate(is_trained)]
