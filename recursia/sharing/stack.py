"""A stack of blocks as depth policies run it, by recursions, in as few scans as possible."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from recursia.layers.attention import Context
from recursia.layers.branch import Report
from recursia.params import at
from recursia.sharing import passes, scans
from recursia.sharing.recursion import Recursion, RecursionOutput
from recursia.sharing.steps import CachedKeys, Span, Steps, joined

# One recursion of a loop: from the carry, the recursion and its entry to the next carry, what is
# stacked over recursions, and the recursion's output.
LoopBody = Callable[[Any, Recursion, Any], tuple[Any, Any, RecursionOutput]]


@dataclasses.dataclass(frozen=True)
class Stack(Steps):
    """Blocks with their weights, as depth policies use them.

    Attributes:
      read: logits of states and the context of their tokens, as if the states were the last.
    """

    read: Callable[[Array, Context], Array]

    def among(self, context: Context) -> "Stack":
        """Returns the stack for the tokens of a call, which decoding has to know."""
        return self

    @property
    def can_walk(self) -> bool:
        """Whether `walk` costs no more than `loop`.

        It does where recursions are rematerialised, or where injection multiplies matrices.
        """
        return self.remat.unit != "recursion" and not self.injection.flops(1)

    def walk(
        self, x: Float[Array, "B T D"], context: Context, *, is_exact: bool = False
    ) -> tuple[Array, Report]:
        """Applies every step once, in one scan over steps where the pattern of keys allows.

        A scan over recursions around a scan over blocks would copy what the inner scan stores for
        the backward pass into the stack of the outer one, and back. One scan has one stack, and
        adds the gradient of a shared weight in place.

        Steps that read the keys of later ones run in passes (`recursia.sharing.passes`).

        Args:
          x: hidden states that enter the stack.
          context: positions, documents and padding of the tokens.
          is_exact: whether such steps run until their keys are those of decoding, without a
            gradient, and not as often as training runs them.

        Returns:
          The last hidden states, and what the blocks report in the last pass, by slot, stacked
          [R K ...].
        """
        plan = self.schedule
        x, report = passes.walk(self, x, context, is_exact)
        place, sizes = np.argsort(plan.steps), (plan.num_recursions, plan.num_blocks)
        in_order = lambda leaf: leaf if plan.order == "cycle" else leaf[place]
        by_step = lambda leaf: in_order(leaf).reshape(*sizes, *leaf.shape[1:])
        return x, jax.tree.map(by_step, report)

    def loop(
        self,
        body: LoopBody,
        carry: Any,
        entries: Any = None,
        recursions: range | None = None,
        cached: tuple[CachedKeys, ...] = (),
    ) -> tuple[Any, Any, Report, tuple[CachedKeys, ...]]:
        """Runs recursions in as few scans as the pattern of keys allows, mostly one.

        Tracing and compiling do not grow with the number of recursions.

        Args:
          body: one recursion; it keeps the carry's shapes, except in a first recursion that is a
            scan of one period.
          carry: passed from one recursion to the next.
          entries: further inputs of `body`, one for each recursion of the stack along the leading
            axis, or None.
          recursions: the recursions to run; None runs all.
          cached: keys and values that earlier recursions made.

        Returns:
          The last carry, the second results of `body` stacked over recursions, the reports stacked
          likewise, and all keys and values cached up to here.
        """
        outs = []
        for scan in self._scans(recursions, cached):
            period, xs = self._period(body, scan, cached), self._inputs(scan, entries)
            if scan.num_periods == 1:
                carry, out = period(carry, at(xs, 0))
                out = jax.tree.map(lambda leaf: leaf[None], out)
            else:
                carry, out = jax.lax.scan(period, carry, xs, scan.num_periods)
            out, keys_values, context = out
            flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
            outs.append(jax.tree.map(flat, out))
            if scan.cached:
                keys_values = jax.tree.map(flat, keys_values)
                # The tokens are the same in every period.
                cached += (
                    CachedKeys(keys_values, at(context, 0), scan.owners, is_of_period=False),
                )
        join = lambda *leaves: leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)
        out, report = jax.tree.map(join, *outs)
        return carry, out, report, cached

    def loop_while(
        self, body: LoopBody, carry: Any, entries: Any, goes_on: Callable[[Any], Bool[Array, ""]]
    ) -> Any:
        """Runs recursions as `loop` does, and stops early once none is needed.

        It returns the carry alone, and has no gradient. Recursions whose keys and values a later
        one reads always run; if such a recursion is not the first, all recursions run.

        Args:
          body: see `loop`.
          carry: see `loop`.
          entries: see `loop`.
          goes_on: whether, after a carry, another recursion is needed.

        Returns:
          The last carry.
        """
        if not self.schedule.is_plain:
            return self.loop(body, carry, entries)[0]  # a later scan may read keys of any of them
        *_, last = self._scans(None, ())
        cached: tuple[CachedKeys, ...] = ()
        if last.start:
            before = range(last.start // self.schedule.num_blocks)
            carry, _, _, cached = self.loop(body, carry, entries, before)
        period = self._period(body, last, cached)
        xs = jax.tree.map(jnp.asarray, self._inputs(last, entries))  # a traced number is its index

        def once(loop: tuple[Array, Any]) -> tuple[Array, Any]:
            return loop[0] + 1, period(loop[1], at(xs, loop[0]))[0]

        is_open = lambda loop: (loop[0] < last.num_periods) & goes_on(loop[1])
        return jax.lax.while_loop(is_open, once, (jnp.int32(0), carry))[1]

    def recursion(self, number: int) -> Recursion:
        """Returns one recursion, for a policy's own loop; it reads no keys of another."""
        start = number * self.schedule.num_blocks
        stop = start + self.schedule.num_blocks
        views = {slot: view[start:stop] for slot, view in self.views().items()}
        injected = at(self.injected(), number)
        return Recursion(self, Span(start, stop, views, (start,)), injected, ())

    def _scans(
        self, recursions: range | None, cached: tuple[CachedKeys, ...]
    ) -> tuple[scans.Scan, ...]:
        unit = self.schedule.num_blocks
        chosen = range(self.schedule.num_recursions) if recursions is None else recursions
        owners = tuple(keys.owners for keys in cached)
        return scans.divide(self.schedule, chosen.start * unit, chosen.stop * unit, unit, owners)

    def _inputs(self, scan: scans.Scan, entries: Any) -> dict[str, Any]:
        """Returns the inputs of a scan over recursions, periods in front."""
        unit = self.schedule.num_blocks
        injected = self.injected()
        own = lambda leaf: leaf[scan.start // unit : scan.stop // unit]
        by_period = lambda leaf: own(leaf).reshape(scan.num_periods, -1, *leaf.shape[1:])
        views = {slot: view[scan.start : scan.stop] for slot, view in self.views().items()}
        return {
            "weights": {slot: view.split(scan.num_periods)[0] for slot, view in views.items()},
            "injected": jax.tree.map(by_period, injected),
            "entry": jax.tree.map(by_period, entries),
            "period": jnp.arange(scan.num_periods),
        }

    def _period(
        self, body: LoopBody, scan: scans.Scan, before: tuple[CachedKeys, ...]
    ) -> Callable[[Any, dict[str, Any]], tuple[Any, Any]]:
        """Returns the function of one period: from the carry and its inputs to carry and outs."""
        unit = self.schedule.num_blocks
        split = {
            slot: view[scan.start : scan.stop].split(scan.num_periods)[1]
            for slot, view in self.views().items()
        }

        def period(carry: Any, xs: dict[str, Any]) -> tuple[Any, Any]:
            views = {slot: split[slot](own) for slot, own in xs["weights"].items()}
            outs, cached = [], ()
            for number in range(scan.period // unit):
                first = scan.start + number * unit
                steps = slice(number * unit, (number + 1) * unit)
                span = Span(
                    first,
                    first + unit,
                    {slot: view[steps] for slot, view in views.items()},
                    tuple(range(first, scan.stop, scan.period)),
                    xs["period"],
                )
                recursion = Recursion(self, span, at(xs["injected"], number), (*before, *cached))
                carry, out, output = body(carry, recursion, at(xs["entry"], number))
                outs.append((out, output.report))
                cached += output.cached
            out = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)
            owners = tuple(scan.start + step for step in scan.cached)
            return carry, (out, *joined(cached, owners))

        return period
