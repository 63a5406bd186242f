"""Recursions as steps of integrating a differential equation: few large ones, or many small ones.

A recursion adds its branches to the residual stream, h + f(h): Euler's method for dh/dt = f(h),
with steps of size 1. The same weights then serve K steps of size dt = horizon / K: in each, what a
branch adds is multiplied by dt (Chen et al. 2023, arXiv 2310.12818). Training may draw K anew for
each update, so that the model serves several K; one compiled program runs all of them.
"""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from recursia import ranges
from recursia.depth.policy import Aux, Call, Pass, Policy, Result
from recursia.injection import Injection
from recursia.layers.attention import Context
from recursia.layers.branch import States
from recursia.params import Params
from recursia.sharing.recursion import Recursion, RecursionOutput
from recursia.sharing.remat import ENTERED
from recursia.sharing.schedule import Schedule
from recursia.sharing.stack import Stack

Step = Callable[[Array], tuple[Array, RecursionOutput]]


@dataclasses.dataclass(frozen=True)
class Integration(Policy):
    """Every token takes `num_recursions` steps of size `horizon / num_recursions`.

    Attributes:
      method: "euler", of first order; or "heun", of second order, which applies the blocks twice in
        each step: a step of size dt, and then one of size -dt, half of whose defect is added. Where
        the branches read the same states, that is Heun's method.
      horizon: time over which is integrated, in steps of size 1; None takes `num_recursions`.
      sampled: numbers of recursions, of which each training step draws one, all equally likely;
        empty: training takes `num_recursions`.
    """

    scales_branches = True
    is_uniform = True

    method: Literal["euler", "heun"] = "euler"
    horizon: float | None = None
    sampled: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.horizon is not None:
            ranges.above(0, self, "horizon")
        if wrong := [count for count in self.sampled if not 1 <= count <= self.num_recursions]:
            raise ValueError(
                f"sampled: got {wrong[0]}, takes numbers from 1 to num_recursions "
                f"{self.num_recursions}"
            )

    @property
    def time(self) -> int | float:
        """`horizon`, or its default."""
        return self.num_recursions if self.horizon is None else self.horizon

    def check(self, schedule: Schedule, coda: int, inject: Injection) -> None:
        """Refuses recursions that differ, and inputs injected again."""
        super().check(schedule, coda, inject)
        if varying := schedule.varying:
            raise ValueError(
                f"depth: integration takes any number of steps with the same weights, and "
                f"{', '.join(varying)} varies along them; take sharing 'cycle' or depth 'fixed'"
            )
        if inject != Injection():
            raise ValueError(
                "inject: depth integration multiplies what a step adds by its size, and what is "
                "injected is added whole; take depth.kind 'fixed', or inject nothing"
            )

    def run(self, stack: Stack, params: Params, x: States, context: Context, call: Call) -> Result:
        """Returns the states after all steps; in training, after a number of them drawn."""
        if call.mode == "train" and self.sampled:
            return self._drawn(stack, x, context, call)
        size = self.time / self.num_recursions

        def body(x: Array, recursion: Recursion, _: None) -> tuple[Array, Array, RecursionOutput]:
            y, made = self._step(recursion, context, size)(x)
            return y, y, made

        x, states, report, _ = stack.loop(body, x)
        return x, Aux({}, {}, jnp.full(x.shape[:2], self.num_recursions), states, report)

    def _drawn(self, stack: Stack, x: States, context: Context, call: Call) -> Result:
        """Takes a number of steps that the key draws; later ones leave the states as they are."""
        count = draw(self.sampled, call.key)
        is_run = jnp.arange(self.num_recursions) < count

        def body(
            x: Array, recursion: Recursion, is_run: Array
        ) -> tuple[Array, None, RecursionOutput]:
            once = self._step(recursion, context, self.time / count)
            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(once, x)[1])
            either = lambda x: jax.lax.cond(is_run, once, lambda x: (x, zeros), x)
            if stack.remat.unit == "block":  # or the scan would save the shared weights each time
                saved = jax.checkpoint_policies.save_only_these_names(ENTERED)
                either = jax.checkpoint(either, prevent_cse=False, policy=saved)
            y, made = either(x)
            return y, None, made

        x, _, report, _ = stack.loop(body, x, is_run)
        return x, Aux({}, {}, jnp.full(x.shape[:2], count), None, report)

    def _step(self, recursion: Recursion, context: Context, size: float | Array) -> Step:
        """Returns one step of the method, of this size."""
        whole = 1.0 if context.multiplier is None else context.multiplier
        by = lambda size: dataclasses.replace(
            context, multiplier=whole * jnp.asarray(size, jnp.float32)
        )
        own = context if isinstance(size, float) and size == 1 else by(size)

        def step(x: Array) -> tuple[Array, RecursionOutput]:
            ahead, made = recursion.run(x, own)
            if self.method == "euler":
                return ahead, made
            behind, again = recursion.run(ahead, by(-size))
            report = jax.tree.map(jnp.add, made.report, again.report)
            return ahead + (x - behind) / 2, dataclasses.replace(made, report=report)

        return step

    @property
    def is_incremental(self) -> bool:
        """Whether a step makes keys once: a cache has one place for those of a token and step."""
        return self.method == "euler"

    def at_depth(self, num_recursions: int) -> "Integration":
        """Returns the policy that integrates over the same time in another number of steps."""
        same = dataclasses.replace(self, horizon=self.time, sampled=())
        return dataclasses.replace(same, num_recursions=num_recursions)

    def passes(self, schedule: Schedule, seq_len: int) -> list[Pass]:
        """Returns the passes of a training step; their mean number, where it is drawn."""
        counts, each = self.sampled or (self.num_recursions,), 1 if self.method == "euler" else 2
        taken = lambda r: sum(r < count for count in counts)
        times = lambda r: each if taken(r) == len(counts) else each * taken(r) / len(counts)
        return [Pass(r, seq_len, times=times(r)) for r in range(max(counts))]


def draw(counts: tuple[int, ...], key: Array | None) -> Int[Array, ""]:
    """Returns one of some numbers; with no key, the same in every call."""
    key = jax.random.key(0) if key is None else key
    index = jax.random.randint(jax.random.fold_in(key, zlib.crc32(b"steps")), (), 0, len(counts))
    return jnp.asarray(counts)[index]
