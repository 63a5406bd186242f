"""A stack that decodes with a KV cache: its steps are unrolled, and each owner has a cache.

Depth policies run it as they run `Stack`: the recursions that they are given read what earlier
tokens left in the cache, and add to it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recursia.injection import Injection
from recursia.layers.attention import Context
from recursia.layers.past import Past
from recursia.params import at
from recursia.sharing.stack import Recursion, Stack, Step
from recursia.sharing.steps import Span

Pasts = dict[int, Past]  # by the place in the walk of the step that makes the keys


@dataclasses.dataclass
class Store:
    """The KV caches of a stack while a call is traced: what it has written so far.

    Attributes:
      pasts: of the steps that make keys.
      num_blocks: how many blocks the call has applied, counted as it runs.
    """

    pasts: Pasts
    num_blocks: int | Array = 0


@dataclasses.dataclass(frozen=True)
class CachedStack(Stack):
    """Blocks with their weights and KV caches.

    Its banks are tuples of entries: an entry is an array of its own, which no step has to copy.

    Attributes:
      store: the caches, replaced as they are written.
      shows_stopped: whether later recursions show stopped tokens to others.
    """

    store: Store
    shows_stopped: bool

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
        if self.shows_stopped or not self._is_plain():
            return self.loop(step, carry, entries)[0]
        unit, count = self.schedule.num_blocks, jnp.int32(0)
        for number in range(self.schedule.num_recursions):

            def once(state: Any, number: int = number) -> Any:
                carry, pasts, count = state
                recursion = self.recursion(number, pasts)
                carry, _, made = step(carry, recursion, at(entries, number))
                return carry, made.kept, count + unit

            state = carry, self.store.pasts, count
            is_needed = number == 0 or goes_on(carry)
            state = once(state) if number == 0 else jax.lax.cond(is_needed, once, _skip, state)
            carry, self.store.pasts, count = state
        self.store.num_blocks += count
        return carry

    def recursion(self, number: int, pasts: Pasts | None = None) -> Recursion:
        """Returns one recursion, with the caches as they are, or as given."""
        start = number * self.schedule.num_blocks
        span = Span(start, start + self.schedule.num_blocks, {}, (start,))
        kept: Any = self.store.pasts if pasts is None else pasts
        return Recursion(self, span, at(self.injected(), number), kept)

    def _keep(self, pasts: Pasts, num_blocks: int) -> None:
        self.store.pasts = pasts
        self.store.num_blocks += num_blocks


def _skip(state: Any) -> Any:
    return state
