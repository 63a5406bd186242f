"""Neighbouring steps of a walk applied in as few scans as their pattern of keys allows."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from recursia.injection import Injection
from recursia.layers.attention import Context, KeysValues, QueriesKeys, planned
from recursia.layers.branch import STATES, Report
from recursia.params import at
from recursia.sharing import scans
from recursia.sharing.remat import ENTERED
from recursia.sharing.steps import CachedKeys, Span, Steps

Memory = Callable[[Array], Array]  # from a block's input to the states that keys are made of


def apply(
    steps: Steps,
    x: Float[Array, "B T D"],
    context: Context,
    span: Span,
    cached: tuple[CachedKeys, ...] = (),
    *,
    memory: Memory | None = None,
    has_boundaries: bool = False,
) -> tuple[Float[Array, "B T D"], tuple[CachedKeys, ...], Report]:
    """Applies the steps of a span, each to the states that the one before it left.

    Args:
      steps: with their weights.
      x: hidden states of any subset of the tokens, in order.
      context: positions, documents and padding of those tokens.
      span: the steps to apply.
      cached: keys and values that earlier steps made.
      memory: from the hidden states before a block, the states that its keys and values are made
        of; None takes the hidden states themselves.
      has_boundaries: whether inputs are injected before the first block of each recursion, and the
        states after its last block are normalised.

    Returns:
      The new hidden states, the keys and values of these steps that later ones read, and what the
      blocks report by slot, stacked in the order of the steps.
    """
    reports, before = [], cached
    if steps.schedule.replays:
        context = dataclasses.replace(context, is_replayed=True)
    owners = tuple(keys.owners for keys in before)
    for scan in scans.divide(steps.schedule, span.start, span.stop, 1, owners):
        step_scan = _StepScan(steps, scan, span, cached, context, memory, has_boundaries)
        x, keys_values, report = step_scan(x)
        if keys_values is not None:
            cached += (CachedKeys(keys_values, context, scan.owners),)
        reports.append(report)
    is_end = span.stop % steps.schedule.num_blocks == 0
    x = steps.norm(x) if has_boundaries and is_end and steps.norm is not None else x
    join = lambda *leaves: leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)
    return x, cached[len(before) :], jax.tree.map(join, *reports)


class _Source(NamedTuple):
    """The cached keys and values that a step of the period reads.

    Attributes:
      cached: where they are.
      by_period: for each period, the keys and values, or their index in `cached`.
      is_all: whether the periods read all that is cached in order, which is then scanned over.
    """

    cached: CachedKeys
    by_period: Any
    is_all: bool


@dataclasses.dataclass(frozen=True)
class _StepScan:
    """One scan of the steps of a span; see `apply`."""

    steps: Steps
    scan: scans.Scan
    span: Span
    cached: tuple[CachedKeys, ...]
    context: Context
    memory: Memory | None
    has_boundaries: bool

    def __call__(self, x: Array) -> tuple[Array, KeysValues | QueriesKeys | None, Report]:
        """Returns the new states, the keys and values to cache [O ...] and the reports [N ...]."""
        num_periods, views = self.scan.num_periods, {}
        inputs: dict[str, Any] = {"weights": {}, "reads": {}, "injected": (), "edges": ()}
        first, stop = self.scan.start - self.span.start, self.scan.stop - self.span.start
        for slot, view in self.span.views.items():
            inputs["weights"][slot], views[slot] = view[first:stop].split(num_periods)
        sources = [self._source(step) for step in range(self.scan.period)]
        inputs["reads"] = {step: each.by_period for step, each in enumerate(sources) if each}
        contexts = [self._context(step, x, source) for step, source in enumerate(sources)]
        if self.has_boundaries:
            recursion = self._grid(self.steps.schedule.steps // self.steps.schedule.num_blocks)
            injected = self.steps.injected()
            inputs["injected"], inputs["edges"] = at(injected, recursion), self._edges()

        def apply_step(
            step: int, x: Array, own: dict[str, Any], made: list[KeysValues | QueriesKeys | None]
        ):
            period = {slot: views[slot](part) for slot, part in own["weights"].items()}
            entries = {slot: view[step : step + 1].entry() for slot, view in period.items()}
            x = self._enter(x, step, own)
            x = checkpoint_name(x, ENTERED)
            source = self._read(step, sources[step], own, made)
            memory = None if self.memory is None else self.memory(x)
            weights = self.steps.bind(entries, self.scan.start + step)
            if self._is_inlined:
                weights, x = jax.lax.optimization_barrier((weights, x))
            x, keys_values, report = self.steps.block.apply(
                weights, x, contexts[step], source, memory
            )
            if self.context.keeps_states:
                report = {**report, STATES: self.steps.block.states(x)}
            return x, (keys_values, report)

        def apply_period(x: Array, own: dict[str, Any]):
            made, reports = [], []
            for step in range(self.scan.period):
                numbered = functools.partial(apply_step, step)
                if self.steps.remat.unit == "block":
                    numbered = self.steps.remat.wrap(numbered, num_periods)
                x, (keys_values, report) = numbered(x, own, made)
                made.append(keys_values)
                reports.append(report)
            return x, (_stacked([made[step] for step in self.scan.cached]), _stacked(reports))

        x, out = jax.lax.scan(apply_period, x, inputs, num_periods)
        flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
        return x, *jax.tree.map(flat, out)

    @property
    def _is_inlined(self) -> bool:
        """Whether this is a walk of one block, which XLA inlines.

        Without a barrier, XLA delays the gradients of its weights until after the backward pass of
        the core, and keeps their operands alive until then.
        """
        return self.scan.num_periods == 1 and self.span.stop == self.steps.schedule.num_steps == 1

    def _grid(self, along: np.ndarray) -> np.ndarray:
        """Returns the values of this scan's steps, by period and step [num_periods, period]."""
        own = along[self.scan.start : self.scan.stop]
        return own.reshape(self.scan.num_periods, self.scan.period)

    def _source(self, step: int) -> _Source | None:
        """Returns the cached keys that a step reads; None where its own period makes them."""
        owners = self.steps.schedule.read_places
        if owners[self.scan.start + step] >= self.scan.start:
            return None
        (cached,) = (c for c in self.cached if owners[self.scan.start + step] in c.owners)
        first = self.scan.start - self.span.start + step
        steps = first + self.scan.period * np.arange(self.scan.num_periods)
        places = self.span.places(cached, owners, steps)
        everyone = [*range(len(cached.owners))]
        is_all = isinstance(places, np.ndarray) and places.tolist() == everyone
        return _Source(cached, cached.keys_values if is_all else places, is_all)

    def _read(
        self,
        step: int,
        source: _Source | None,
        inputs: dict[str, Any],
        made: Sequence[KeysValues | QueriesKeys | None],
    ) -> tuple[KeysValues | QueriesKeys, Context] | None:
        """Returns the keys and values that a step reads, and their context; None makes its own."""
        if source is None:
            owner = int(self.steps.schedule.read_places[self.scan.start + step]) - self.scan.start
            keys_values = None if owner == step else made[owner]
            return None if keys_values is None else (keys_values, self.context)
        read = inputs["reads"][step]
        keys_values = read if source.is_all else at(source.cached.keys_values, read)
        return keys_values, source.cached.context

    def _context(self, step: int, x: Array, source: _Source | None) -> Context:
        """Returns the context of a step, with its sliding window and the plan of its attention."""
        plan, place = self.steps.schedule, self.scan.start + step
        window, sees_itself = int(plan.seen[plan.steps][place]), bool(plan.read_places[place] >= 0)
        context = self.context
        if window or not sees_itself:
            context = dataclasses.replace(context, window=window, sees_itself=sees_itself)
        read = context if source is None else source.cached.context
        return planned(context, read, x, self.steps.block.query_shape)

    def _edges(self) -> tuple[Bool[np.ndarray, "N P"], Bool[np.ndarray, "N P"]]:
        """Returns which steps follow the end of a recursion, and which are the first of one."""
        block = self._grid(self.steps.schedule.steps % self.steps.schedule.num_blocks)
        start = np.arange(self.scan.start, self.scan.stop).reshape(block.shape) == self.span.start
        return (block == 0) & ~start, block == 0

    def _enter(self, x: Array, step: int, inputs: dict[str, Any]) -> Array:
        """Returns the input of a step's block.

        The norm after a recursion is applied as the next begins: a rematerialised block then need
        not compute its last product again, as the input of that norm.
        """
        if not self.has_boundaries:
            return x
        (follows, begins), whether = self._edges(), inputs["edges"]
        if self.steps.norm is not None:
            x = _only(follows[:, step], whether[0][step], self.steps.norm, x)
        if self.steps.injection == Injection():
            return x
        injected = at(inputs["injected"], step)
        change = lambda x: self.steps.inject(injected, x, self.context)
        return _only(begins[:, step], whether[1][step], change, x)


def _only(periods: Bool[np.ndarray, "N"], when: Array, change: Memory, x: Array) -> Array:
    """Returns `x` changed in some periods, without a branch where all periods are alike."""
    if periods.all() or not periods.any():
        return change(x) if periods.all() else x
    return jax.lax.cond(when, change, lambda x: x, x)


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if trees else None
