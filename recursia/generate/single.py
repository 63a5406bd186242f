"""One recursion of the core for one token, of which the number is traced.

Under `vmap` it is one recursion of a batch whose rows are each at a recursion of their own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool

from recursia import cache, model
from recursia.architecture import Model
from recursia.depth.policy import Call
from recursia.layers.attention import PADDING, Context, KeysValues
from recursia.layers.branch import Report
from recursia.layers.past import Past
from recursia.params import Leaf, Params, at
from recursia.sharing.cached import CachedRecursion, CachedStack, Pasts, Store, picked
from recursia.sharing.stack import LoopBody
from recursia.sharing.step_scan import Memory
from recursia.sharing.steps import Span
from recursia.stacks import CORE

VARYING = "varying"  # the section of banks whose entries differ between recursions


@struct.dataclass
class OwnPast(Past):
    """The cache that a step reads, to which it adds keys only in a recursion that makes them.

    Attributes:
      makes_keys: whether this one does.
    """

    makes_keys: Leaf = True  # []

    def append(self, made: KeysValues, context: Context) -> Past:
        """Returns the cache with the keys and values of a token, if the recursion makes them."""
        return Past.append(self, made, context.hide(jnp.broadcast_to(~self.makes_keys, (1, 1))))


@dataclasses.dataclass(frozen=True)
class OneRecursion(CachedStack):
    """The core of which a depth policy runs one recursion, the number of which is traced.

    Banks whose entries differ between recursions are stacked; the others are tuples.

    Attributes:
      number: of the recursion.
      carry: before it; None stops before the first recursion.
      outputs: receives the carry after it, the caches, and whether another recursion follows.
    """

    number: Array
    carry: Any
    outputs: list[tuple[Any, Pasts, Array]]

    def loop_while(
        self, body: LoopBody, carry: Any, entries: Any, goes_on: Callable[[Any], Bool[Array, ""]]
    ) -> Any:
        """Runs the recursion."""
        if self.carry is None:
            self.outputs.append((carry, {}, jnp.bool_(True)))
            return carry
        entries = jax.tree.map(jnp.asarray, entries)
        carry, _, pasts = self._once(body, self.carry, entries, self.number, self.store.pasts)
        follows = self.number + 1 < self.schedule.num_recursions
        self.outputs.append((carry, pasts, goes_on(carry) & follows))
        return carry

    def loop(
        self,
        body: LoopBody,
        carry: Any,
        entries: Any = None,
        recursions: range | None = None,
        cached: tuple = (),
    ) -> tuple[Any, Any, Report, tuple]:
        """Runs the recursion, which is followed by all others; there are no outs."""
        return self.loop_while(body, carry, entries, lambda _: jnp.bool_(True)), None, {}, ()

    def apply(
        self,
        x: Array,
        context: Context,
        span: Span,
        pasts: Pasts,
        *,
        memory: Memory | None = None,
        has_boundaries: bool = False,
        later: Pasts | None = None,
    ) -> tuple[Array, Pasts]:
        """Applies every block of the core once; see `CachedStack.apply`."""
        pasts = dict(pasts)
        for block, past in pasts.items():
            scope = dataclasses.replace(context, window=int(self.schedule.seen[block]))
            inputs = None if memory is None else memory(x)
            weights = self.bind(self._entries(block), block)
            x, made, _ = self.block.apply(weights, x, scope, past, inputs)
            assert isinstance(made, Past)
            pasts[block] = made
        return x, pasts

    def _entries(self, step: int) -> Params:
        def entry(name: str, bank: Any) -> Any:
            index = self.schedule.by_recursion(name)[:, step]
            if not self.schedule.varies(name):
                return picked(bank, index[0])
            return at(bank, jnp.asarray(index)[self.number])

        return {name: entry(name, bank) for name, bank in self.banks.items()}

    def _recursion(self, number: Any, pasts: Pasts) -> CachedRecursion:
        span = Span(0, self.schedule.num_blocks, {}, (0,))
        return _Recursion(self, span, at(self.injected(), number), (), pasts, number)


@dataclasses.dataclass(frozen=True)
class _Recursion(CachedRecursion):
    """A recursion whose number is traced.

    Attributes:
      number: from 0.
    """

    number: Array

    def only(
        self, context: Context, going: Bool[Array, "B T"], active: Bool[Array, "B T"]
    ) -> Context:
        """Returns a context as `Recursion.only` does."""
        plan, every = self.steps.schedule, range(self.steps.schedule.num_recursions)
        is_source = jnp.array([plan.is_source(r) for r in every])[self.number]
        makes_keys = jnp.array([plan.makes_keys(r) for r in every])[self.number]
        is_first = self.number == 0
        counted = jnp.where(is_source, is_first | active, going)
        hidden = jnp.where(is_source, ~is_first & ~active, makes_keys & ~going)
        segments = 1 if context.segment_ids is None else context.segment_ids
        shown = jnp.where(hidden, PADDING, segments)
        return dataclasses.replace(context.count_only(counted), segment_ids=shown)


def unstack(params: Params, config: Model) -> Params:
    """Returns parameters for slots: those of `cache.unstack`, and the core's banks by recursion.

    Args:
      params: float32, with the entries of a bank stacked.
      config: the model.
    """
    apart = cache.unstack(params, config)
    stack = lambda bank: jax.tree.map(lambda *leaves: jnp.stack(leaves), *bank)
    banks = apart[CORE].items()
    stacked = lambda bank: stack(bank) if isinstance(bank, tuple) else bank
    varying = {n: stacked(bank) for n, bank in banks if config.schedule.varies(n)}
    return {**apart, VARYING: varying}


def context_of(config: Model, position: Array, x: Array | None) -> Context:
    """Returns the context of a batch of single tokens.

    Args:
      config: the model.
      position: of each [B].
      x: states that entered the core [B 1 D]; None outside of it.
    """
    ones = jnp.ones((len(position), 1), jnp.int32)
    inputs = None if x is None or not config.inject.needs_input else config.block.states(x)
    factor = model.multiplier(config)
    return Context(position[:, None], ones, is_live=ones > 0, inputs=inputs, multiplier=factor)


def run(
    params: Params,
    config: Model,
    x: Array,
    carry: Any,
    position: Array,
    number: Array,
    pasts: Pasts,
) -> tuple[Array, tuple[Any, Pasts, Array]]:
    """Runs one recursion of the depth policy for one token; returns also what the stack gives."""
    stack = model.stacks_of(params, config)[CORE]
    fields = {field.name: getattr(stack, field.name) for field in dataclasses.fields(stack)}
    fields["banks"] = {**fields["banks"], **params[VARYING]}
    how = {"store": Store(pasts), "resume": None, "context": None, "is_whole": False}
    outputs: list[tuple[Any, Pasts, Array]] = []
    one = OneRecursion(**fields, **how, number=number, carry=carry, outputs=outputs)
    context = context_of(config, position[None], x)
    call = Call("causal", wanted=context.is_live)
    left, _ = config.depth.run(one, params["depth"], x, context, call)
    (output,) = outputs
    return left, output


def begin(params: Params, config: Model, x: Array, position: Array) -> Any:
    """Returns the carry of a token that enters the core."""
    return run(params, config, x, None, position, jnp.int32(0), {})[1][0]
