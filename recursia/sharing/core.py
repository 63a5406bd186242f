"""The shared stack as a function: what a depth policy is given."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from recursia import inject, kv
from recursia.blocks.block import Block
from recursia.layers.attention import Context, KeysValues
from recursia.params import Leaf, at
from recursia.sharding import Shard, whole
from recursia.sharing.grid import Grid

Remat = Literal["none", "block", "recursion"]
Saves = Literal["nothing", "attention", "products"]
ENTERED = "block_entered"  # name of a block's hidden states, for policies of rematerialisation
_MATMUL = ("grouped_matmul",)
_POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("routed_attention"),
    "products": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        lambda primitive, *_, **__: primitive.name in _MATMUL,
    ),
}


def rematerialise(f: Callable, saves: Saves, length: int = 1) -> Callable:
    """Returns a function whose inside the backward pass computes again, but for what it saves.

    Args:
      f: a block or a recursion.
      saves: "nothing" of its inside; what "attention" read, with the sums of its exponentials; or
        "products" with weights.
      length: steps of the scan that runs it. A scan of one is no loop once compiled, and there the
        compiler must be kept from finding that it has computed all of this before.
    """
    return jax.checkpoint(f, prevent_cse=length == 1, policy=_POLICIES[saves])


@struct.dataclass
class Made:
    """What one recursion leaves to others.

    Attributes:
      keys_values: of each block, stacked; None if it read another recursion's.
      context: of the tokens they belong to.
      report: what its blocks report, by slot, stacked over blocks.
    """

    keys_values: KeysValues | None
    context: Context
    report: dict[str, Leaf]


def run_stack(
    step: Callable, x: Array, stacked: dict[str, Any], reads: Any = None, length: int | None = None
) -> tuple[Array, Any]:
    """Applies `step(entry, x, read) -> (x, made)` to each block in turn, as one scan.

    Args:
      step: one application of a block.
      x: hidden states.
      stacked: the entries, one per block along the leading axis of each leaf.
      reads: what each block reads of another recursion, stacked likewise, or None.
      length: number of blocks, where nothing is stacked.

    Returns:
      The last hidden states, and what each block made, stacked.
    """
    return jax.lax.scan(lambda x, entry: step(entry[0], x, entry[1]), x, (stacked, reads), length)


def cast(block: Block, weights: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Returns a step's weights, whole, in the compute dtype but for the slots that stay float32."""

    def to(dtype: Any, tree: Any) -> Any:
        is_leaf = lambda leaf: isinstance(leaf, Shard)
        return jax.tree.map(lambda weight: whole(weight, dtype), tree, is_leaf=is_leaf)

    kept = lambda slot: jnp.float32 if slot in block.exact else dtype
    return {slot: to(kept(slot), tree) for slot, tree in weights.items()}


@dataclasses.dataclass(frozen=True)
class Core:
    """One recursion of the shared stack as a function of any subset of the tokens.

    Attributes:
      grid: which steps share.
      block: what one step does.
      banks: float32 parameters by slot.
      tables: bank entries by slot [R K], for slots that have a table.
      wrap: how a step's entries become the block's weights.
      inject: what a recursion is told when it starts, and its parameters.
      norm: of a recursion's result, float32 weights within; None has none.
      read: logits of a state, were it the last, and the context of its tokens.
      kv: whose keys and values a recursion reads.
      dtype: compute dtype; parameters are cast to it inside every step, so that a shared weight's
        gradient sums over recursions in float32.
      remat: what the backward pass computes again instead of keeping.
      remat_saves: what is kept of that all the same.
    """

    grid: Grid
    block: Block
    banks: dict[str, Any]
    tables: dict[str, Array]
    wrap: Callable[[dict[str, Any]], dict[str, Any]]
    inject: tuple[inject.Config, dict[str, Array]]
    norm: Callable[[Array], Array] | None
    read: Callable[[Array, Context], Array]
    kv: kv.Config
    dtype: Any
    remat: Remat
    remat_saves: Saves

    def private(self) -> dict[str, Any]:
        """Returns what differs between recursions, one entry each along the leading axis."""
        varying = {s: b for s, b in self.banks.items() if "recursion" in self.grid.axes_of(s)}
        told = inject.private(*self.inject, self.grid.num_recursions)
        return {"banks": {**varying, **self.tables}, "inject": told}

    def enter(
        self, x: Float[Array, "B T D"], private: dict[str, Any], context: Context
    ) -> Float[Array, "B T D"]:
        """Returns the states that `recurse` starts from; the arguments are its."""
        return inject.apply(*self.inject, private["inject"], x, context)

    def recurse(
        self,
        x: Float[Array, "B T D"],
        private: dict[str, Any],
        context: Context,
        source: Made | None = None,
        memory: Callable[[Array], Array] | None = None,
    ) -> tuple[Float[Array, "B T D"], Made]:
        """Applies every block once.

        Args:
          x: hidden states of any subset of the tokens, in order, as `enter` gave them.
          private: this recursion's entry of `private()`.
          context: where those tokens stand.
          source: another recursion whose keys and values to read; None to make their own.
          memory: from the hidden states before a block, the states that its keys and values are
            made of; None takes the hidden states themselves.

        Returns:
          The new hidden states, and what the blocks leave to others.
        """
        entries = {**self.banks, **private["banks"]}
        by_block = {s: e for s, e in entries.items() if self._is_stacked(s)}
        common = {s: e for s, e in entries.items() if s not in by_block}

        def step(entry: dict[str, Any], x: Array, read: KeysValues | None):
            entry = {s: at(self.banks[s], e) if s in self.tables else e for s, e in entry.items()}
            weights = self.wrap(cast(self.block, {**common, **entry}, self.dtype))
            x = checkpoint_name(x, ENTERED)
            read = None if read is None else (read, source.context)
            seen = None if memory is None else memory(x)
            x, made, report = self.block.apply(weights, x, context, read, seen)
            return x, (made, report)

        blocks = self.grid.num_blocks
        if self.remat == "block":
            step = rematerialise(step, self.remat_saves, blocks)
        stack = lambda x, by_block, reads: run_stack(step, x, by_block, reads, blocks)
        if self.remat == "recursion":
            stack = rematerialise(stack, self.remat_saves)
        x, (made, report) = stack(x, by_block, None if source is None else source.keys_values)
        return x if self.norm is None else self.norm(x), Made(made, context, report)

    def _is_stacked(self, slot: str) -> bool:
        return slot in self.tables or "block" in self.grid.axes_of(slot)

    def each_recursion(
        self, step: Callable, carry: Any, entries: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Runs `step(carry, private, entry, source) -> (carry, out, made)` for every recursion.

        One scan, so that tracing and compiling do not grow with the number of recursions; where
        later recursions read the first one's keys and values, the first stands before the scan.

        Args:
          step: one recursion; the carry's shapes may not change.
          carry: what goes from one recursion to the next.
          entries: further inputs of each recursion along the leading axis, or None.

        Returns:
          The last carry, the outs stacked over recursions, and the reports stacked likewise.
        """
        inputs = (self.private(), entries)

        def walk(source: Made | None, carry: Any, entry: Any):
            carry, out, made = step(carry, *entry, source)
            return carry, (out, made.report)

        if not self.kv.reads_first:
            count = self.grid.num_recursions
            carry, outs = jax.lax.scan(functools.partial(walk, None), carry, inputs, length=count)
            return carry, *outs
        carry, first, source = step(carry, *at(inputs, 0), None)
        first = (first, source.report)
        rest = at(inputs, slice(1, None))
        count = self.grid.num_recursions - 1
        carry, outs = jax.lax.scan(functools.partial(walk, source), carry, rest, length=count)
        join = lambda one, others: jnp.concatenate([one[None], others])
        return carry, *jax.tree.map(join, first, outs)

    def recursions_while(
        self, step: Callable, carry: Any, entries: Any, goes_on: Callable[[Any], Bool[Array, ""]]
    ) -> Any:
        """Runs recursions as `each_recursion` does, and stops before one that is not needed.

        Nothing is kept of them but the carry, and there is no gradient.

        Args:
          step: as there.
          carry: as there.
          entries: as there.
          goes_on: whether, after a carry, another recursion is needed.

        Returns:
          The last carry.
        """
        inputs = (self.private(), entries)
        source, done = None, 0
        if self.kv.reads_first:
            carry, _, source = step(carry, *at(inputs, 0), None)
            done = 1

        def once(loop: tuple[Array, Any]) -> tuple[Array, Any]:
            return loop[0] + 1, step(loop[1], *at(inputs, loop[0]), source)[0]

        is_open = lambda loop: (loop[0] < self.grid.num_recursions) & goes_on(loop[1])
        return jax.lax.while_loop(is_open, once, (jnp.int32(done), carry))[1]

    def each_block(self, run: Callable, x: Float[Array, "B T D"]) -> tuple[Array, Any]:
        """Runs `run(core of one block, x) -> (x, out)` for every block: the walk of a sequence.

        Returns:
          The last hidden states, and the outs stacked over blocks.
        """
        single = dataclasses.replace(self.grid, num_blocks=1, order="cycle")
        axis = {s: self.grid.axes_of(s).index("block") for s in self.banks if self._varies(s)}

        def move(change: Callable, banks: dict[str, Any]) -> dict[str, Any]:
            return {s: jax.tree.map(functools.partial(change, axis[s]), banks[s]) for s in axis}

        def body(x: Array, entry: Any):
            banks, tables = entry
            banks = move(lambda axis, leaf: jnp.expand_dims(leaf, axis), banks)
            tables = {s: column[:, None] for s, column in tables.items()}
            banks = {**self.banks, **banks}
            return run(dataclasses.replace(self, grid=single, banks=banks, tables=tables), x)

        banks = move(lambda axis, leaf: jnp.moveaxis(leaf, axis, 0), self.banks)
        tables = {s: table.T for s, table in self.tables.items()}
        return jax.lax.scan(body, x, (banks, tables), length=self.grid.num_blocks)

    def _varies(self, slot: str) -> bool:
        return "block" in self.grid.axes_of(slot)
