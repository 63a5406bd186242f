"""A stack of blocks as a depth policy is given it: recursion by recursion, in one scan."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from recursia.layers.attention import Context
from recursia.params import at
from recursia.sharing import cut
from recursia.sharing.steps import Kept, Span, Steps


@struct.dataclass
class Made:
    """What a recursion leaves behind.

    Attributes:
      kept: keys and values that later steps read.
      report: what its blocks report, by slot, stacked over blocks [K ...].
    """

    kept: tuple[Kept, ...]
    report: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recursion:
    """One recursion of a stack, for any subset of the tokens.

    Attributes:
      stack: whose blocks it applies.
      span: its steps.
      injected: what is injected that differs between recursions.
      kept: keys and values that earlier recursions made.
    """

    stack: "Stack"
    span: Span
    injected: dict[str, Any]
    kept: tuple[Kept, ...]

    @property
    def is_source(self) -> bool:
        """Whether later recursions read keys and values that this one makes."""
        return self.stack.schedule.is_source(self._number)

    @property
    def _number(self) -> int:
        return self.span.start // self.stack.schedule.num_blocks

    def only(
        self, context: Context, going: Bool[Array, "B T"], active: Bool[Array, "B T"]
    ) -> Context:
        """Returns a context in which tokens that do not go on are computed and thrown away.

        No other token sees them, but that a recursion whose keys later ones read makes those of
        every active token.

        Args:
          context: of all tokens.
          going: those whose results are kept.
          active: those that could go on; all but padding in the first recursion.
        """
        if self.is_source:
            return context if self.span.starts == (0,) else context.hide(~active)
        makes_keys = self.stack.schedule.makes_keys(self._number)
        return context.hide(~going) if makes_keys else context.count_only(going)

    def enter(self, x: Float[Array, "B T D"], context: Context) -> Float[Array, "B T D"]:
        """Returns the states that the blocks start from: the last ones with what is injected."""
        return self.stack.injection.apply(self.stack.injection_params, self.injected, x, context)

    def run(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        memory: Callable[[Array], Array] | None = None,
    ) -> tuple[Float[Array, "B T D"], Made]:
        """Applies every block once.

        Args:
          x: hidden states of any subset of the tokens, in order, as `enter` gave them.
          context: where those tokens stand.
          memory: from the hidden states before a block, the states that its keys and values are
            made of; None takes the hidden states themselves.

        Returns:
          The new hidden states, and what the blocks leave to others.
        """
        take = functools.partial(self._take, context=context, memory=memory)
        if self.stack.remat.unit == "recursion":
            take = self.stack.remat.wrap(take)
        x, made = take(x)
        return x if self.stack.norm is None else self.stack.norm(x), made

    def _take(self, x: Array, context: Context, memory: Any) -> tuple[Array, Made]:
        x, kept, report = self.stack.take(x, context, self.span, self.kept, memory=memory)
        return x, Made(kept, report)


# One recursion of a loop: from the carry, the recursion and its entry to the next carry, what it
# gives, and what it leaves to others.
Step = Callable[[Any, Recursion, Any], tuple[Any, Any, Made]]


@dataclasses.dataclass(frozen=True)
class Stack(Steps):
    """Blocks with their weights, as a depth policy is given them.

    Attributes:
      read: logits of a state, were it the last, and the context of its tokens.
    """

    read: Callable[[Array, Context], Array]

    def among(self, context: Context) -> "Stack":
        """Returns the stack for the tokens of a call, of which decoding has to know."""
        return self

    def loop(
        self, step: Step, carry: Any, entries: Any = None, recursions: range | None = None, kept=()
    ) -> tuple[Any, Any, dict[str, Any], tuple[Kept, ...]]:
        """Runs recursions in turn, as one scan for each pattern of keys: mostly one in all.

        Tracing and compiling do not grow with the number of recursions.

        Args:
          step: one recursion; the carry's shapes may not change, but in a first recursion that
            stands alone.
          carry: what goes from one recursion to the next.
          entries: further inputs of each recursion of the stack along the leading axis, or None.
          recursions: which to run; None runs all.
          kept: keys and values that recursions before these made.

        Returns:
          The last carry, the outs stacked over recursions, the reports stacked likewise, and the
          keys and values that later recursions read.
        """
        outs = []
        for run in self._runs(recursions, kept):
            turn, xs = self._turn(step, run, kept), self._inputs(run, entries)
            if run.turns == 1:
                carry, out = turn(carry, at(xs, 0))
                out = jax.tree.map(lambda leaf: leaf[None], out)
            else:
                carry, out = jax.lax.scan(turn, carry, xs, run.turns)
            out, keys_values, context = out
            flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
            outs.append(jax.tree.map(flat, out))
            if run.kept:
                keys_values = jax.tree.map(flat, keys_values)
                # The tokens are the same in every turn.
                kept += (Kept(keys_values, at(context, 0), run.owners, is_of_turn=False),)
        join = lambda *leaves: leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)
        out, report = jax.tree.map(join, *outs)
        return carry, out, report, kept

    def loop_while(
        self, step: Step, carry: Any, entries: Any, goes_on: Callable[[Any], Bool[Array, ""]]
    ) -> Any:
        """Runs recursions as `loop` does, and stops before one that is not needed.

        Nothing is kept of them but the carry, and there is no gradient. Recursions whose keys and
        values a later one reads are run in any case, and all of them where such a one is not the
        first.

        Args:
          step: as there.
          carry: as there.
          entries: as there.
          goes_on: whether, after a carry, another recursion is needed.

        Returns:
          The last carry.
        """
        if not self._is_plain():
            return self.loop(step, carry, entries)[0]
        *_, last = self._runs(None, ())
        kept: tuple[Kept, ...] = ()
        if last.start:
            before = range(last.start // self.schedule.num_blocks)
            carry, _, _, kept = self.loop(step, carry, entries, before)
        turn, xs = self._turn(step, last, kept), self._inputs(last, entries)

        def once(loop: tuple[Array, Any]) -> tuple[Array, Any]:
            return loop[0] + 1, turn(loop[1], at(xs, loop[0]))[0]

        is_open = lambda loop: (loop[0] < last.turns) & goes_on(loop[1])
        return jax.lax.while_loop(is_open, once, (jnp.int32(0), carry))[1]

    def _is_plain(self) -> bool:
        """Whether each step reads its own keys, or all read those of the first recursion."""
        plan = self.schedule
        first = np.arange(plan.num_steps) % plan.num_blocks
        return plan.makes_all_keys or bool(np.isin(plan.owners, first).all())

    def recursion(self, number: int) -> Recursion:
        """Returns one recursion, for a loop of a policy's own; it reads no other's keys."""
        start = number * self.schedule.num_blocks
        stop = start + self.schedule.num_blocks
        views = {slot: view[start:stop] for slot, view in self.views().items()}
        injected = at(self.injected(), number)
        return Recursion(self, Span(start, stop, views, (start,)), injected, ())

    def _runs(self, recursions: range | None, kept: tuple[Kept, ...]) -> tuple[cut.Run, ...]:
        unit = self.schedule.num_blocks
        which = range(self.schedule.num_recursions) if recursions is None else recursions
        at_hand = tuple(each.owners for each in kept)
        return cut.runs(self.schedule, which.start * unit, which.stop * unit, unit, at_hand)

    def _inputs(self, run: cut.Run, entries: Any) -> dict[str, Any]:
        """Returns what a scan over the periods of a run takes, periods in front."""
        unit = self.schedule.num_blocks
        injected = self.injected()
        ours = lambda leaf: leaf[run.start // unit : run.stop // unit]
        by_turn = lambda leaf: ours(leaf).reshape(run.turns, -1, *leaf.shape[1:])
        views = {slot: view[run.start : run.stop] for slot, view in self.views().items()}
        return {
            "weights": {slot: view.split(run.turns)[0] for slot, view in views.items()},
            "injected": jax.tree.map(by_turn, injected),
            "entry": jax.tree.map(by_turn, entries),
            "turn": jnp.arange(run.turns),
        }

    def _turn(self, step: Step, run: cut.Run, before: tuple[Kept, ...]) -> Callable:
        """Returns one period of a run: from the carry and its inputs to the next carry and outs."""
        unit = self.schedule.num_blocks
        split = {s: view[run.start : run.stop].split(run.turns) for s, view in self.views().items()}

        def turn(carry: Any, xs: dict[str, Any]) -> tuple[Any, Any]:
            views = {slot: split[slot][1](part) for slot, part in xs["weights"].items()}
            outs, kept = [], ()
            for number in range(run.period // unit):
                first = run.start + number * unit
                mine = slice(number * unit, (number + 1) * unit)
                span = Span(
                    first,
                    first + unit,
                    {slot: view[mine] for slot, view in views.items()},
                    tuple(range(first, run.stop, run.period)),
                    xs["turn"],
                )
                recursion = Recursion(self, span, at(xs["injected"], number), (*before, *kept))
                carry, out, made = step(carry, recursion, at(xs["entry"], number))
                outs.append((out, made.report))
                kept += made.kept
            out = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)
            return carry, (out, *_joined(kept, tuple(run.start + step for step in run.kept)))

        return turn


def _joined(kept: tuple[Kept, ...], owners: tuple[int, ...]) -> tuple[Any, Context | None]:
    """Returns the keys and values of some steps, stacked, and the context of their tokens."""
    parts = []
    for each in kept:
        index = np.array([i for i, owner in enumerate(each.owners) if owner in owners], int)
        if len(index):
            is_all = len(index) == len(each.owners)
            parts.append(
                (each.keys_values if is_all else at(each.keys_values, index), each.context)
            )
    if not parts:
        return None, None
    keys_values = [keys_values for keys_values, _ in parts]
    join = lambda *leaves: leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)
    return jax.tree.map(join, *keys_values), parts[0][1]
