"""Steps of a schedule, applied to any subset of the tokens in as few scans as can be."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from recursia.injection import Injection
from recursia.layers.attention import Context, KeysValues
from recursia.params import at
from recursia.sharding import Shard, gathered
from recursia.sharing import cut, key_banks
from recursia.sharing.remat import ENTERED, Remat
from recursia.sharing.schedule import KEYS, Schedule
from recursia.sharing.views import View
from recursia.sharing.weights import Weights


@struct.dataclass
class Kept:
    """Keys and values that later steps read, stacked over the steps that made them.

    Attributes:
      keys_values: with those steps in front.
      context: of the tokens they belong to.
      owners: the steps, by their place in the walk.
      is_of_turn: whether the turn of the scan that is running made them.
    """

    keys_values: KeysValues  # [O B S K H]
    context: Context
    owners: tuple[int, ...] = struct.field(pytree_node=False)
    is_of_turn: bool = struct.field(pytree_node=False, default=True)


@dataclasses.dataclass(frozen=True)
class Span:
    """Neighbouring steps of a walk, which may stand for others of the same pattern.

    Attributes:
      start: the first step, by its place in the walk.
      stop: the step after the last.
      views: the bank entries of the steps, by slot.
      starts: the first step of each of those that they stand for, one of them their own.
      turn: which of those they are.
    """

    start: int
    stop: int
    views: dict[str, View]
    starts: tuple[int, ...]
    turn: int | Array = 0

    def places(
        self, kept: Kept, owners: Int[np.ndarray, "N"], steps: Int[np.ndarray, "M"]
    ) -> Int[np.ndarray, "M"] | Array:
        """Returns where, among the steps that `kept` holds, each step's keys are."""
        find = lambda start: [kept.owners.index(owners[start + step]) for step in steps]
        first = [self.start] if kept.is_of_turn else self.starts
        rows = np.array([find(start) for start in first])
        return rows[0] if (rows == rows[0]).all() else jnp.array(rows)[self.turn]


@dataclasses.dataclass(frozen=True)
class Steps:
    """Blocks with their weights.

    Attributes:
      schedule: what each step uses.
      block: what a step does.
      weights: how a step's bank entries become the block's weights.
      banks: float32 parameters by slot, entries in front.
      injection: the inputs injected again at each recursion.
      injection_params: of `injection`, float32.
      norm: of a recursion's result; None has none.
      dtype: compute dtype; parameters are cast to it inside every step, so that a shared weight's
        gradient sums over recursions in float32.
      remat: what the backward pass computes again.
    """

    schedule: Schedule
    block: Any
    weights: Weights
    banks: dict[str, Any]
    injection: Injection
    injection_params: dict[str, Array]
    norm: Callable[[Array], Array] | None
    dtype: Any
    remat: Remat

    @property
    def can_walk(self) -> bool:
        """Whether `walk` costs no more than recursions in turn.

        Not where a recursion is computed again as a whole, or starts with products of its own.
        """
        return self.remat.unit != "recursion" and not self.injection.flops(1)

    def views(self) -> dict[str, View]:
        """Returns each bank with the entry of every step, in the order of the walk.

        Where the bank of a slot's keys has the entries that the slot has, both are one view.
        """
        plan, names = self.schedule, self.block.key_weights
        names = (*names, *self.weights.key_weights(names))
        banks: dict[str, Any] = {}
        for slot, tree in self.banks.items():
            is_one = np.array_equal(plan.entry(slot), plan.entry(slot + KEYS))
            banks |= {slot: tree} if is_one else key_banks.split(slot, tree, names)
        return {name: View(tree, plan.entry(name)[plan.steps]) for name, tree in banks.items()}

    def injected(self) -> dict[str, Array]:
        """Returns what is injected that differs between recursions, recursions in front."""
        count = self.schedule.num_recursions
        return self.injection.by_recursion(self.injection_params, count)

    def walk(self, x: Float[Array, "B T D"], context: Context) -> tuple[Array, dict[str, Any]]:
        """Applies every step once, as one scan where the pattern of keys allows.

        Of a scan over recursions whose inside scans over blocks, the backward pass keeps more than
        it needs: what the inner scan stacked is copied into the outer's stack, and back. Here there
        is one stack, and the gradient of a shared weight is added where it lies.

        Returns:
          The last hidden states, and what the blocks report, by slot, stacked [R K ...].
        """
        plan = self.schedule
        span = Span(0, plan.num_steps, self.views(), (0,))
        has_edges = self.norm is not None or self.injection != Injection()
        x, _, report = self.take(x, context, span, has_edges=has_edges)
        place, sizes = np.argsort(plan.steps), (plan.num_recursions, plan.num_blocks)
        in_order = lambda leaf: leaf if plan.order == "cycle" else leaf[place]
        by_step = lambda leaf: in_order(leaf).reshape(*sizes, *leaf.shape[1:])
        return x, jax.tree.map(by_step, report)

    def take(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        span: Span,
        kept: tuple[Kept, ...] = (),
        *,
        memory: Callable[[Array], Array] | None = None,
        has_edges: bool = False,
    ) -> tuple[Float[Array, "B T D"], tuple[Kept, ...], dict[str, Any]]:
        """Takes some steps in turn.

        Args:
          x: hidden states of any subset of the tokens, in order.
          context: where those tokens stand.
          span: which steps.
          kept: keys and values that earlier steps made.
          memory: from the hidden states before a block, the states that its keys and values are
            made of; None takes the hidden states themselves.
          has_edges: whether inputs are injected at the first block of each recursion, and what its
            last block gives is normalised.

        Returns:
          The new hidden states, the keys and values that later steps read, and what the blocks
          report by slot, stacked in the order of the steps.
        """
        reports, before = [], kept
        at_hand = tuple(each.owners for each in before)
        for run in cut.runs(self.schedule, span.start, span.stop, 1, at_hand):
            scan = _Scan(self, run, span, kept, context, memory, has_edges)
            x, keys_values, report = scan(x)
            if run.kept:
                kept += (Kept(keys_values, context, run.owners),)
            reports.append(report)
        join = lambda *leaves: leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)
        return x, kept[len(before) :], jax.tree.map(join, *reports)

    def bind(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Returns the block's weights from a step's bank entries, in the compute dtype.

        Args:
          weights: by slot, or by bank.
        """
        exact = (*self.block.exact, *self.weights.exact)
        is_leaf = lambda leaf: isinstance(leaf, Shard)

        def cast(slot: str, tree: Any) -> Any:
            dtype = jnp.float32 if slot in exact else self.dtype
            return jax.tree.map(lambda leaf: gathered(leaf, dtype), tree, is_leaf=is_leaf)

        slots = key_banks.join(weights)
        return self.weights.bind({slot: cast(slot, tree) for slot, tree in slots.items()})


@dataclasses.dataclass(frozen=True)
class _Scan:
    """One run of steps as a scan over its periods; see `Steps.take`."""

    stack: Steps
    run: cut.Run
    span: Span
    kept: tuple[Kept, ...]
    context: Context
    memory: Callable[[Array], Array] | None
    has_edges: bool

    def __call__(self, x: Array) -> tuple[Array, KeysValues | None, dict[str, Any]]:
        """Returns the new states, what is kept of the keys [O ...] and the reports [N ...]."""
        turns, weights = self.run.turns, {}
        xs: dict[str, Any] = {"weights": {}, "reads": {}, "injected": (), "edges": ()}
        first, stop = self.run.start - self.span.start, self.run.stop - self.span.start
        for slot, view in self.span.views.items():
            xs["weights"][slot], weights[slot] = view[first:stop].split(turns)
        sources = {step: self._source(step) for step in range(self.run.period)}
        xs["reads"] = {step: source[1] for step, source in sources.items() if source}
        if self.has_edges:
            recursion = self._grid(self.stack.schedule.steps // self.stack.schedule.num_blocks)
            injected = self.stack.injected()
            xs["injected"], xs["edges"] = at(injected, recursion), self._edges()

        def one(step: int, x: Array, turn: Any, made: list[KeysValues | None]):
            views = {slot: weights[slot](part) for slot, part in turn["weights"].items()}
            entries = {slot: view[step : step + 1].entry() for slot, view in views.items()}
            x = self._enter(x, step, turn)
            x = checkpoint_name(x, ENTERED)
            source = self._read(step, sources[step], turn, made)
            seen = None if self.memory is None else self.memory(x)
            bound = self.stack.bind(entries)
            if self._is_inlined:
                bound, x = jax.lax.optimization_barrier((bound, x))
            x, mine, report = self.stack.block.apply(bound, x, self._scope(step), source, seen)
            return self._leave(x, step, turn), (mine, report)

        def turn(x: Array, turn: Any):
            made, reports = [], []
            for step in range(self.run.period):
                apply = functools.partial(one, step)
                if self.stack.remat.unit == "block":
                    apply = self.stack.remat.wrap(apply, turns)
                x, (mine, report) = apply(x, turn, made)
                made.append(mine)
                reports.append(report)
            return x, (_stacked([made[step] for step in self.run.kept]), _stacked(reports))

        x, out = jax.lax.scan(turn, x, xs, turns)
        flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
        return x, *jax.tree.map(flat, out)

    @property
    def _is_inlined(self) -> bool:
        """Whether this is a walk of one block, which is no loop once compiled.

        XLA would delay its weights' gradients, with all that they are made of, until after the
        backward pass of what comes later.
        """
        return self.run.turns == 1 and self.span.stop == self.stack.schedule.num_steps == 1

    def _grid(self, along: np.ndarray) -> np.ndarray:
        """Returns what belongs to the steps of this run, by turn and step [turns, period]."""
        return along[self.run.start : self.run.stop].reshape(self.run.turns, self.run.period)

    def _source(self, step: int) -> tuple[Kept, Any, bool] | None:
        """Returns what holds a step's keys, and for each turn the keys or their place in it.

        None where the period itself makes them.
        """
        owners = self.stack.schedule.in_walk[0]
        if owners[self.run.start + step] >= self.run.start:
            return None
        (kept,) = (k for k in self.kept if owners[self.run.start + step] in k.owners)
        first = self.run.start - self.span.start + step
        steps = first + self.run.period * np.arange(self.run.turns)
        places = self.span.places(kept, owners, steps)
        is_all = isinstance(places, np.ndarray) and places.tolist() == [*range(len(kept.owners))]
        return kept, kept.keys_values if is_all else places, is_all

    def _read(self, step: int, source: Any, turn: Any, made: list[KeysValues | None]):
        """Returns whose keys and values a step reads, and their context; None makes its own."""
        if source is None:
            owner = int(self.stack.schedule.in_walk[0][self.run.start + step]) - self.run.start
            return None if owner == step else (made[owner], self.context)
        kept, _, is_all = source
        entry = turn["reads"][step]
        return entry if is_all else at(kept.keys_values, entry), kept.context

    def _scope(self, step: int) -> Context:
        """Returns the context of a step, with the window of keys that it sees."""
        window = int(self.stack.schedule.seen[self.stack.schedule.steps][self.run.start + step])
        return self.context.replace(window=window) if window else self.context

    def _edges(self) -> tuple[Bool[np.ndarray, "N P"], Bool[np.ndarray, "N P"]]:
        """Returns which steps are the first, and the last, of a recursion."""
        block = self._grid(self.stack.schedule.steps % self.stack.schedule.num_blocks)
        return block == 0, block == self.stack.schedule.num_blocks - 1

    def _enter(self, x: Array, step: int, turn: Any) -> Array:
        if not self.has_edges or self.stack.injection == Injection():
            return x
        injected = at(turn["injected"], step)
        inject, params = self.stack.injection, self.stack.injection_params
        change = lambda x: inject.apply(params, injected, x, self.context)
        return _only(self._edges()[0][:, step], turn["edges"][0][step], change, x)

    def _leave(self, x: Array, step: int, turn: Any) -> Array:
        if not self.has_edges or self.stack.norm is None:
            return x
        return _only(self._edges()[1][:, step], turn["edges"][1][step], self.stack.norm, x)


def _only(turns: Bool[np.ndarray, "N"], when: Array, change: Callable, x: Array) -> Array:
    """Returns `x` changed in some turns, without a branch where all of them are alike."""
    if turns.all() or not turns.any():
        return change(x) if turns.all() else x
    return jax.lax.cond(when, change, lambda x: x, x)


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if trees else None
