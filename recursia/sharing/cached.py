"""A stack that decodes with KV caches: its steps are unrolled, and each owner of keys has a cache.

Depth policies run it as they run `Stack`: their recursions read what earlier tokens left in the
caches, and add to it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from recursia.injection import Injection
from recursia.layers.attention import Context, QueriesKeys
from recursia.layers.branch import Report
from recursia.layers.past import Past
from recursia.params import Leaf, Params, at
from recursia.sharing import pending as waiting
from recursia.sharing.passes import settled
from recursia.sharing.pending import Pending
from recursia.sharing.recursion import Recursion, RecursionOutput
from recursia.sharing.stack import LoopBody, Stack
from recursia.sharing.step_scan import Memory
from recursia.sharing.steps import CachedKeys, Span

Pasts = dict[int, Past]  # KV caches by the place in the walk of the step that makes the keys


@dataclasses.dataclass
class Store:
    """The KV caches of a stack, replaced by longer ones while a call is traced.

    Attributes:
      pasts: of the steps that make keys.
      pending: tokens that stopped early and whose later keys are not made; None has none.
      num_blocks: blocks that the call has applied.
      queries: of the tokens of the call, by the place of the step that made them, for steps that
        replay them.
    """

    pasts: Pasts
    pending: Pending | None = None
    num_blocks: int | Array = 0
    queries: dict[int, Leaf] = dataclasses.field(default_factory=dict)


@struct.dataclass
class CachedOutput(RecursionOutput):
    """The output of a recursion that extends KV caches."""

    pasts: Pasts = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CachedRecursion(Recursion):
    """One recursion of a stack with KV caches.

    Attributes:
      pasts: the caches as earlier steps of the call left them.
    """

    pasts: Pasts

    def _apply(
        self, x: Array, context: Context, memory: Memory | None
    ) -> tuple[Array, CachedOutput]:
        assert isinstance(self.steps, CachedStack)
        x, pasts = self.steps.apply(x, context, self.span, self.pasts, memory=memory)
        return x, CachedOutput((), {}, pasts)


def picked(bank: Any, index: int | np.integer | Int[np.ndarray, "*C"]) -> Any:
    """Returns an entry of a bank whose entries are apart, or several of one that is stacked."""
    if np.ndim(index):
        return at(bank, index)
    return bank[min(int(index), len(bank) - 1)]  # a bank without an array is one entry


@dataclasses.dataclass(frozen=True)
class CachedStack(Stack):
    """Blocks with their weights and KV caches.

    Its banks are tuples of entries: each entry is an array of its own, which no step copies.

    Attributes:
      store: the caches.
      resume: runs the depth policy with a stack, on the states of some tokens and their context;
        None where stopped tokens need no later keys.
      context: of the tokens of the call, with the states that enter the core.
      is_whole: whether all recursions run, those that no token of the call needs too.
    """

    store: Store
    resume: Callable[["CachedStack", Array, Context], None] | None
    context: Context | None
    is_whole: bool

    def among(self, context: Context) -> "CachedStack":
        """Returns the stack for the tokens of a call."""
        return dataclasses.replace(self, context=context)

    def walk(
        self, x: Float[Array, "B T D"], context: Context, *, is_exact: bool = True
    ) -> tuple[Array, Report]:
        """Applies every step, as decoding does; there are no reports.

        One token at a time needs one pass through steps that read the keys of later ones. Several
        at once take passes until nothing changes.
        """
        pasts = self.store.pasts
        for start, stop, is_cycle in self.schedule.segments:
            span = Span(start, stop, {}, (start,))
            once = functools.partial(self.apply, x, context, span, pasts, has_boundaries=True)
            later = pasts
            if is_cycle and x.shape[1] > 1:
                again = lambda later, once=once: once(later=later)[1]
                later = settled(again, pasts, x.shape[1] - 1)
            x, pasts = once(later=later)
        self._keep(pasts, self.schedule.num_steps)
        return x, {}

    def apply(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        span: Span,
        pasts: Pasts,
        *,
        memory: Memory | None = None,
        has_boundaries: bool = False,
        later: Pasts | None = None,
    ) -> tuple[Float[Array, "B T D"], Pasts]:
        """Applies the steps of a span, each to the states that the one before it left.

        Keys of later steps are read from the caches `later`, or where these are None from `pasts`;
        the other arguments are those of `step_scan.apply`.

        Returns:
          The new hidden states, and the caches with the keys and values of these steps.
        """
        plan, pasts = self.schedule, dict(pasts)
        for place in range(span.start, span.stop):
            step = int(plan.steps[place])
            recursion, block = divmod(step, plan.num_blocks)
            if has_boundaries and block == 0 and self.injection != Injection():
                own = at(self.injected(), recursion)
                x = self.inject(own, x, context)
            owner, window = int(plan.owner_places[place]), int(plan.seen[step])
            is_earlier = owner <= place
            past = pasts[owner] if is_earlier or later is None else later[owner]
            scope = dataclasses.replace(
                context,
                window=window,
                sees_itself=is_earlier,
                is_replayed=plan.replays and owner == place,
            )
            source = past if owner == place else (past.keys_values, past.context)
            if plan.replays and owner != place:
                replayed = QueriesKeys(self.store.queries[owner], past.keys_values.key)
                source = replayed, pasts[place]
            inputs = None if memory is None else memory(x)
            weights = self.bind(self._entries(step), place)
            x, made, _ = self.block.apply(weights, x, scope, source, inputs)
            if isinstance(made, Past):
                self.store.queries[place] = made.query
                pasts[place] = dataclasses.replace(made, query=None)
            if has_boundaries and block == plan.num_blocks - 1 and self.norm is not None:
                x = self.norm(x)
        return x, pasts

    def _entries(self, step: int) -> Params:
        entry = lambda name: self.schedule.entry(name)[step]
        return {name: picked(bank, entry(name)) for name, bank in self.banks.items()}

    def loop(
        self,
        body: LoopBody,
        carry: Any,
        entries: Any = None,
        recursions: range | None = None,
        cached: tuple[CachedKeys, ...] = (),
    ) -> tuple[Any, Any, Report, tuple[CachedKeys, ...]]:
        """Runs recursions one after the other; there are no reports."""
        outs = []
        for number in range(self.schedule.num_recursions) if recursions is None else recursions:
            carry, out, pasts = self._once(body, carry, entries, number, self.store.pasts)
            self._keep(pasts, self.schedule.num_blocks)
            outs.append(out)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs), {}, ()

    def loop_while(
        self, body: LoopBody, carry: Any, entries: Any, goes_on: Callable[[Any], Bool[Array, ""]]
    ) -> Any:
        """Runs recursions one after the other, and applies no block of those after the last needed.

        Before a recursion runs, the tokens of the text that stopped before it take it, too.
        """
        if self.is_whole or not self.schedule.is_plain:
            return self.loop(body, carry, entries)[0]
        unit = self.schedule.num_blocks
        state = _State(carry, self.store.pasts, self._pending(carry), jnp.int32(0), jnp.int32(0))
        for number in range(self.schedule.num_recursions):

            def once(state: _State, number: int = number) -> _State:
                state = self._catch_up(number, state)
                carry, _, pasts = self._once(body, state.carry, entries, number, state.pasts)
                count = state.num_blocks + unit
                return _State(carry, pasts, state.pending, state.depth + 1, count)

            if number:
                state = jax.lax.cond(goes_on(state.carry), once, lambda state: state, state)
            else:
                state = once(state)
        self._keep(state.pasts, state.num_blocks)
        if state.pending is not None and self.context is not None:
            self.store.pending = state.pending.add(state.carry, self.context, state.depth)
        return state.carry

    def recursion(self, number: int) -> Recursion:
        """Returns one recursion with the caches as they are."""
        return self._recursion(number, self.store.pasts)

    def _recursion(self, number: Any, pasts: Pasts) -> CachedRecursion:
        start = number * self.schedule.num_blocks
        span = Span(start, start + self.schedule.num_blocks, {}, (start,))
        return CachedRecursion(self, span, at(self.injected(), number), (), pasts)

    def _once(
        self, body: LoopBody, carry: Any, entries: Any, number: Any, pasts: Pasts
    ) -> tuple[Any, Any, Pasts]:
        carry, out, output = body(carry, self._recursion(number, pasts), at(entries, number))
        assert isinstance(output, CachedOutput)
        return carry, out, output.pasts

    def _keep(self, pasts: Pasts, num_blocks: int | Array) -> None:
        self.store.pasts = pasts
        self.store.num_blocks += num_blocks

    def _pending(self, carry: Any) -> Pending | None:
        """Returns the tokens that stopped early; there are none in the first call of a text."""
        if self.resume is None or self.context is None:
            return None
        size = next(iter(self.store.pasts.values())).size
        return self.store.pending or waiting.empty(carry, self.context, size)

    def _catch_up(self, number: int, state: "_State") -> "_State":
        """Runs a recursion for the tokens that stopped just before it, several at once."""
        if state.pending is None:
            return state

        def some(state: tuple[Pasts, Pending, Array]) -> tuple[Pasts, Pending, Array]:
            pasts, pending, count = state
            index, is_taken = pending.first(number)
            carry, context = pending.take(index, shared)
            if self.context is not None:  # one factor for all tokens: none of them keeps it
                context = dataclasses.replace(context, multiplier=self.context.multiplier)
            fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
            alone = _Alone(**fields, number=number, carry=carry, pasts=pasts, outputs=[])
            x = jnp.zeros((*index.shape, self.block.stream_dim), self.dtype)
            assert self.resume is not None
            self.resume(alone, x, context.hide(~is_taken))
            ((carry, pasts),) = alone.outputs
            pending = pending.put(index, carry, context, number + 1, 0)
            return pasts, pending, count + self.schedule.num_blocks

        shared, start = state.carry, (state.pasts, state.pending, state.num_blocks)
        waits = lambda state: state[1].waits(number).any()
        pasts, pending, count = jax.lax.while_loop(waits, some, start)
        return _State(state.carry, pasts, pending, state.depth, count)


@dataclasses.dataclass(frozen=True)
class _Alone(CachedStack):
    """The stack for tokens that stopped before a recursion and now take it alone.

    Attributes:
      number: of the recursion.
      carry: of the policy, for those tokens.
      pasts: the caches.
      outputs: receives the carry and the caches after it.
    """

    number: int
    carry: Any
    pasts: Pasts
    outputs: list[tuple[Any, Pasts]]

    def loop_while(
        self, body: LoopBody, carry: Any, entries: Any, goes_on: Callable[[Any], Bool[Array, ""]]
    ) -> Any:
        """Runs the one recursion."""
        carry, _, pasts = self._once(body, self.carry, entries, self.number, self.pasts)
        self.outputs.append((carry, pasts))
        return carry


@struct.dataclass
class _State:
    """Passed from one recursion to the next.

    Attributes:
      carry: of the depth policy, for the tokens of the call.
      pasts: the caches.
      pending: tokens that stopped early.
      depth: recursions that the tokens of the call have taken.
      num_blocks: blocks applied.
    """

    carry: Any
    pasts: Pasts
    pending: Pending | None
    depth: Leaf
    num_blocks: Leaf
