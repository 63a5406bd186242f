"""The steps of a schedule with their weights, and the keys and values that pass between them."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from recursia.fsdp import Shard, gathered
from recursia.injection import Injection
from recursia.layers.attention import Context, KeysValues, QueriesKeys
from recursia.layers.branch import Report, States
from recursia.layers.past import Made, Source
from recursia.params import Params, at
from recursia.sharing import key_banks
from recursia.sharing.remat import Remat
from recursia.sharing.schedule import KEYS, Schedule
from recursia.sharing.views import View
from recursia.sharing.weights import Weights


@runtime_checkable
class SharedBlock(Protocol):
    """What a block has that is shared across depth; `recursia.blocks.block.Block` says more."""

    @property
    def embed_dim(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def stream_dim(self) -> int:
        """Width of the residual stream and of what a token hands on beside it."""
        ...

    def states(self, stream: Array) -> Array:
        """Returns the residual stream alone."""
        ...

    def renewed(self, stream: Array, states: Array) -> Array:
        """Returns other states, with what is handed on beside those of `stream`."""
        ...

    @property
    def exact(self) -> tuple[str, ...]:
        """Slots whose weights stay float32 whatever the compute dtype."""
        ...

    @property
    def key_weights(self) -> key_banks.Names:
        """(slot, name) of weights that only make keys and values."""
        ...

    @property
    def score_weights(self) -> key_banks.Names:
        """(slot, name) of weights that only make queries and keys."""
        ...

    @property
    def query_shape(self) -> tuple[int, int]:
        """Query heads of each key head, and their width."""
        ...

    def apply(
        self,
        params: Params,
        x: States,
        context: Context,
        source: Source | None = None,
        memory: States | None = None,
    ) -> tuple[States, Made | None, Report]:
        """Applies the block once."""
        ...


@struct.dataclass
class CachedKeys:
    """Keys and values, or queries and keys, that later steps read, stacked over their makers.

    Attributes:
      keys_values: those steps in front.
      context: of the tokens they belong to.
      owners: those steps, by their place in the walk.
      is_of_period: whether the period that a scan is at made them, instead of an earlier scan.
    """

    keys_values: KeysValues | QueriesKeys  # [O B S K H]
    context: Context
    owners: tuple[int, ...] = struct.field(pytree_node=False)
    is_of_period: bool = struct.field(pytree_node=False, default=True)


def joined(
    cached: tuple[CachedKeys, ...], owners: tuple[int, ...]
) -> tuple[KeysValues | QueriesKeys | None, Context | None]:
    """Returns the keys and values of some steps, stacked, and the context of their tokens."""
    stacks, contexts = [], []
    for keys in cached:
        index = np.array([i for i, owner in enumerate(keys.owners) if owner in owners], int)
        if len(index):
            is_all = len(index) == len(keys.owners)
            stacks.append(keys.keys_values if is_all else at(keys.keys_values, index))
            contexts.append(keys.context)
    if not stacks:
        return None, None
    join = lambda *leaves: leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)
    return jax.tree.map(join, *stacks), contexts[0]


@dataclasses.dataclass(frozen=True)
class Span:
    """Neighbouring steps of a walk, with their bank entries.

    In the body of a scan, one span stands for the steps at the same place of every period: `start`
    and `stop` are those of the first period.

    Attributes:
      start: the first step, by its place in the walk.
      stop: the step after the last.
      views: the bank entries of the steps, by slot.
      starts: the first step in each period.
      period: the number of the period, from 0; traced in the body of a scan.
    """

    start: int
    stop: int
    views: dict[str, View]
    starts: tuple[int, ...]
    period: int | Array = 0

    def places(
        self, cached: CachedKeys, owners: Int[np.ndarray, "N"], steps: Int[np.ndarray, "M"]
    ) -> Int[np.ndarray, "M"] | Array:
        """Returns the index, in `cached`, of the keys that each step reads.

        Args:
          cached: has the keys of all these steps.
          owners: for each place in the walk, whose keys its step reads.
          steps: steps of the span, counted from its first.
        """
        find = lambda start: [cached.owners.index(owners[start + step]) for step in steps]
        starts = [self.start] if cached.is_of_period else self.starts
        rows = np.array([find(start) for start in starts])
        return rows[0] if (rows == rows[0]).all() else jnp.array(rows)[self.period]


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a schedule: their block, the banks of its weights, and what surrounds it.

    Attributes:
      schedule: the bank entries and keys that each step uses.
      block: applied in every step.
      weights: how a step's bank entries become the block's weights.
      banks: float32 parameters by slot, entries in front.
      injection: the inputs injected again at each recursion.
      injection_params: of `injection`, float32.
      norm: of the states after each recursion; None leaves them as they are.
      dtype: compute dtype; parameters are cast to it inside every step, so that a shared weight's
        gradient sums over recursions in float32.
      remat: what the backward pass computes again.
    """

    schedule: Schedule
    block: SharedBlock
    weights: Weights
    banks: Params
    injection: Injection
    injection_params: dict[str, Array]
    norm: Callable[[Array], Array] | None
    dtype: DTypeLike
    remat: Remat

    def views(self) -> dict[str, View]:
        """Returns each bank with the entry of every step, in the order of the walk.

        A slot whose weights of keys have the same entries as its other weights has one view.
        """
        plan = self.schedule
        names = key_banks.names(plan, self.block, self.weights)
        banks: Params = {}
        for slot, tree in self.banks.items():
            is_one = np.array_equal(plan.entry(slot), plan.entry(slot + KEYS))
            banks |= {slot: tree} if is_one else key_banks.split(slot, tree, names)
        return {name: View(tree, plan.entry(name)[plan.steps]) for name, tree in banks.items()}

    def injected(self) -> dict[str, Array]:
        """Returns the injected inputs that differ between recursions, recursions in front."""
        count = self.schedule.num_recursions
        return self.injection.by_recursion(self.injection_params, count)

    def inject(self, own: dict[str, Array], x: States, context: Context) -> States:
        """Returns the input of a recursion's first block.

        Args:
          own: the recursion's entry of `injected`.
          x: states after the last recursion.
          context: of the tokens, with their positions and the input of the core.
        """
        states = self.block.states(x)
        states = self.injection.apply(self.injection_params, own, states, context)
        return self.block.renewed(x, states)

    def bind(self, entries: Params, place: int) -> Params:
        """Returns the block's weights from a step's bank entries, in the compute dtype.

        Args:
          entries: by slot, or by bank where a slot's weights of keys have one of their own.
          place: of the step in the walk, or of another whose weights have the same shapes.
        """
        exact = (*self.block.exact, *self.weights.exact)
        is_leaf = lambda leaf: isinstance(leaf, Shard)

        def cast(slot: str, tree: Any) -> Any:
            dtype = jnp.float32 if slot in exact else self.dtype
            return jax.tree.map(lambda leaf: gathered(leaf, dtype), tree, is_leaf=is_leaf)

        slots = key_banks.join(entries)
        own = {slot: cast(slot, tree) for slot, tree in slots.items()}
        return self.weights.at_step(int(self.schedule.steps[place])).bind(own)
