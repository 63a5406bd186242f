"""A stack that decodes with a KV cache: its steps are unrolled, and each owner has a cache.

Depth policies run it as they run `Stack`: the recursions that they are given read what earlier
tokens left in the cache, and add to it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from recursia.injection import Injection
from recursia.layers.attention import Context
from recursia.layers.past import Past
from recursia.params import Leaf, at
from recursia.sharing import pending as waiting
from recursia.sharing.pending import Pending
from recursia.sharing.stack import Recursion, Stack, Step
from recursia.sharing.steps import Span

Pasts = dict[int, Past]  # by the place in the walk of the step that makes the keys


@dataclasses.dataclass
class Store:
    """The KV caches of a stack while a call is traced: what it has written so far.

    Attributes:
      pasts: of the steps that make keys.
      pending: tokens whose later keys are not made yet; None where there never are any.
      num_blocks: how many blocks the call has applied, counted as it runs.
    """

    pasts: Pasts
    pending: Pending | None = None
    num_blocks: int | Array = 0


@dataclasses.dataclass(frozen=True)
class CachedStack(Stack):
    """Blocks with their weights and KV caches.

    Its banks are tuples of entries: an entry is an array of its own, which no step has to copy.

    Attributes:
      store: the caches, replaced as they are written.
      resume: runs the depth policy with a stack, on the states of some tokens and their context;
        None where later recursions do not show stopped tokens to others.
      context: of the tokens of the call, with the states that the core is entered with.
    """

    store: Store
    resume: Callable[["CachedStack", Array, Context], Any] | None
    context: Context | None

    def among(self, context: Context) -> "CachedStack":
        """Returns the stack for the tokens of a call."""
        return dataclasses.replace(self, context=context)

    @property
    def can_walk(self) -> bool:
        """Whether `walk` costs no more than recursions in turn: they are unrolled in both."""
        return True

    def entries(self, place: int) -> dict[str, Any]:
        """Returns the bank entries of the step at a place in the walk, by bank."""
        step = int(self.schedule.steps[place])
        index = {name: int(self.schedule.entry(name)[step]) for name in self.banks}
        return {name: bank[index[name]] if bank else {} for name, bank in self.banks.items()}

    def walk(self, x: Float[Array, "B T D"], context: Context) -> tuple[Array, dict[str, Any]]:
        """Applies every step once, as `Stack.walk` does; there are no reports."""
        span = Span(0, self.schedule.num_steps, {}, (0,))
        x, pasts, _ = self.take(x, context, span, self.store.pasts, has_edges=True)
        self._keep(pasts, self.schedule.num_steps)
        return x, {}

    def take(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        span: Span,
        kept: Any = (),
        *,
        memory: Callable[[Array], Array] | None = None,
        has_edges: bool = False,
    ) -> tuple[Float[Array, "B T D"], Any, dict[str, Any]]:
        """Takes some steps in turn, as `Steps.take` does, with the caches as what is kept."""
        plan, pasts = self.schedule, dict(kept)
        injected = self.injected() if has_edges else {}
        for place in range(span.start, span.stop):
            recursion, block = divmod(int(plan.steps[place]), plan.num_blocks)
            if has_edges and block == 0 and self.injection != Injection():
                own = at(injected, recursion)
                x = self.injection.apply(self.injection_params, own, x, context)
            owner, window = int(plan.in_walk[0][place]), int(plan.seen[plan.steps[place]])
            source = pasts[owner]
            x, made, _ = self.block.apply(
                self.bind(self.entries(place)),
                x,
                context.replace(window=window) if window else context,
                source if owner == place else (source.keys_values, source.context),
                None if memory is None else memory(x),
            )
            if owner == place:
                pasts[owner] = made
            if has_edges and block == plan.num_blocks - 1 and self.norm is not None:
                x = self.norm(x)
        return x, pasts, {}

    def loop(
        self, step: Step, carry: Any, entries: Any = None, recursions: range | None = None, kept=()
    ) -> tuple[Any, Any, dict[str, Any], tuple[()]]:
        """Runs recursions in turn, as `Stack.loop` does; there are no reports."""
        outs = []
        for number in range(self.schedule.num_recursions) if recursions is None else recursions:
            carry, out, made = step(carry, self.recursion(number), at(entries, number))
            self._keep(made.kept, self.schedule.num_blocks)
            outs.append(out)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs), {}, ()

    def loop_while(
        self, step: Step, carry: Any, entries: Any, goes_on: Callable[[Any], Bool[Array, ""]]
    ) -> Any:
        """Runs recursions in turn, and applies no block of those that are not needed."""
        if not self._is_plain():
            return self.loop(step, carry, entries)[0]
        pending = self._pending(carry)
        state = _State(carry, self.store.pasts, pending, jnp.int32(0), jnp.int32(0))
        for number in range(self.schedule.num_recursions):

            def once(state: _State, number: int = number) -> _State:
                state = self._catch_up(number, state)
                recursion = self.recursion(number, state.pasts)
                carry, _, made = step(state.carry, recursion, at(entries, number))
                return state.after(carry, made.kept, state.pending, self.schedule.num_blocks)

            if number:
                state = jax.lax.cond(goes_on(state.carry), once, _skip, state)
            else:
                state = once(state)
        self.store.pasts = state.pasts
        if state.pending is not None and self.context is not None:
            self.store.pending = state.pending.add(state.carry, self.context, state.done)
        self.store.num_blocks += state.num_blocks
        return state.carry

    def _pending(self, carry: Any) -> Pending | None:
        """Returns the tokens that stopped early, none yet in a call's first."""
        if self.resume is None or self.context is None:
            return None
        size = next(iter(self.store.pasts.values())).size
        return self.store.pending or waiting.empty(carry, self.context, size)

    def _catch_up(self, number: int, state: "_State") -> "_State":
        """Lets stopped tokens take a recursion that they have not taken, several at once."""
        if state.pending is None:
            return state

        def some(state: _State) -> _State:
            index, is_taken = state.pending.first(number)
            carry, context = state.pending.take(index, state.carry)
            context = context.hide(~is_taken)
            fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
            one = _One(**fields, number=number, carry=carry, pasts=state.pasts, found=[])
            x = jnp.zeros((*index.shape, self.block.embed_dim), self.dtype)
            self.resume(one, x, context)
            ((carry, _, made),) = one.found
            pending = state.pending.put(index, carry, context, number + 1, 0)
            return state.after(state.carry, made.kept, pending, self.schedule.num_blocks, 0)

        return jax.lax.while_loop(lambda s: s.pending.waits(number).any(), some, state)

    def recursion(self, number: int, pasts: Pasts | None = None) -> Recursion:
        """Returns one recursion, with the caches as they are, or as given."""
        start = number * self.schedule.num_blocks
        span = Span(start, start + self.schedule.num_blocks, {}, (start,))
        kept: Any = self.store.pasts if pasts is None else pasts
        return Recursion(self, span, at(self.injected(), number), kept)

    def _keep(self, pasts: Pasts, num_blocks: int) -> None:
        self.store.pasts = pasts
        self.store.num_blocks += num_blocks


@dataclasses.dataclass(frozen=True)
class _One(CachedStack):
    """The stack for some tokens that stopped before a recursion, and now take that one alone.

    Attributes:
      number: of the recursion.
      carry: of the policy, for those tokens.
      pasts: the caches.
      found: takes what the recursion gives.
    """

    number: int
    carry: Any
    pasts: Pasts
    found: list[Any]

    def loop_while(
        self, step: Step, carry: Any, entries: Any, goes_on: Callable[[Any], Bool[Array, ""]]
    ) -> Any:
        """Runs the one recursion."""
        recursion = self.recursion(self.number, self.pasts)
        self.found.append(step(self.carry, recursion, at(entries, self.number)))
        return self.found[0][0]


@struct.dataclass
class _State:
    """What goes from one recursion to the next.

    Attributes:
      carry: of the depth policy, for the tokens of the call.
      pasts: the caches.
      pending: tokens that wait.
      done: recursions that the tokens of the call have taken.
      num_blocks: blocks applied.
    """

    carry: Any
    pasts: Pasts
    pending: Pending | None
    done: Leaf
    num_blocks: Leaf

    def after(
        self, carry: Any, pasts: Pasts, pending: Pending | None, num_blocks: int, more: int = 1
    ) -> "_State":
        """Returns what is after a recursion of the call's tokens, or of others that catch up."""
        return _State(carry, pasts, pending, self.done + more, self.num_blocks + num_blocks)


def _skip(state: _State) -> _State:
    return state
