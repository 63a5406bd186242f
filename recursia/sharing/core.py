"""The shared stack as a function: what a depth policy is given."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import kv
from recursia.layers.attention import Context, KeysValues
from recursia.params import at
from recursia.sharing.grid import Grid

Source = tuple[KeysValues, Context]  # what a recursion's blocks made, stacked, and for which tokens
Remat = Literal["none", "block", "recursion"]


def run_stack(
    step: Callable, x: Array, stacked: dict[str, Any], reads: Any = None, length: int | None = None
) -> tuple[Array, Any]:
    """Applies `step(entry, x, read) -> (x, made)` to each block in turn, as one scan.

    Args:
      step: one application of a block.
      x: hidden states.
      stacked: the entries, one per block along the leading axis of each leaf.
      reads: what each block reads of another recursion, stacked likewise, or None.

    Returns:
      The last hidden states, and what each block made, stacked.
    """
    return jax.lax.scan(lambda x, entry: step(entry[0], x, entry[1]), x, (stacked, reads), length)


@dataclasses.dataclass(frozen=True)
class Core:
    """One recursion of the shared stack as a function of any subset of the tokens.

    Attributes:
      grid: which steps share.
      block: a module of `recursia.blocks`.
      config: that block's.
      banks: float32 parameters by slot.
      tables: bank entries by slot [R K], for slots that have a table.
      kv: whose keys and values a recursion reads.
      dtype: compute dtype; parameters are cast to it inside every step, so that a shared weight's
        gradient sums over recursions in float32.
      remat: what the backward pass computes again instead of keeping.
    """

    grid: Grid
    block: Any
    config: Any
    banks: dict[str, Any]
    tables: dict[str, Array]
    kv: kv.Config
    dtype: Any
    remat: Remat

    def private(self) -> dict[str, Any]:
        """Returns what differs between recursions, one entry each along the leading axis."""
        varying = {s: b for s, b in self.banks.items() if "recursion" in self.grid.axes_of(s)}
        return {**varying, **self.tables}

    def recurse(
        self,
        x: Float[Array, "B T D"],
        private: dict[str, Any],
        context: Context,
        source: Source | None = None,
    ) -> tuple[Float[Array, "B T D"], KeysValues | None]:
        """Applies every block once.

        Args:
          x: hidden states of any subset of the tokens, in order.
          private: this recursion's entry of `private()`.
          context: where those tokens stand.
          source: keys and values of another recursion's blocks; None to make their own.

        Returns:
          The new hidden states, and each block's keys and values, stacked over blocks.
        """
        entries = {**self.banks, **private}
        by_block = {s: e for s, e in entries.items() if self._is_stacked(s)}
        common = {s: e for s, e in entries.items() if s not in by_block}

        def step(entry: dict[str, Any], x: Array, read: KeysValues | None):
            entry = {s: at(self.banks[s], e) if s in self.tables else e for s, e in entry.items()}
            weights = jax.tree.map(lambda p: p.astype(self.dtype), {**common, **entry})
            read = None if read is None else (read, source[1])
            return self.block.apply(weights, x, context, self.config, read)

        if self.remat == "block":
            step = jax.checkpoint(step, prevent_cse=False)
        blocks = self.grid.num_blocks
        stack = lambda x, by_block, reads: run_stack(step, x, by_block, reads, blocks)
        if self.remat == "recursion":
            stack = jax.checkpoint(stack, prevent_cse=False)
        return stack(x, by_block, None if source is None else source[0])

    def _is_stacked(self, slot: str) -> bool:
        return slot in self.tables or "block" in self.grid.axes_of(slot)

    def each_recursion(self, step: Callable, carry: Any, entries: Any) -> tuple[Any, Any]:
        """Runs `step(carry, private, entry, source) -> (carry, out, made)` for every recursion.

        One scan, so that tracing and compiling do not grow with the number of recursions; where
        later recursions read the first one's keys and values, the first stands before the scan.

        Args:
          step: one recursion; the carry's shapes may not change.
          carry: what goes from one recursion to the next.
          entries: further inputs of each recursion along the leading axis, or None.

        Returns:
          The last carry, and the outs stacked over recursions.
        """
        inputs = (self.private(), entries)
        if not self.kv.reads_first:
            walk = lambda carry, entry: step(carry, *entry, None)[:2]
            return jax.lax.scan(walk, carry, inputs, length=self.grid.num_recursions)
        carry, first, source = step(carry, *at(inputs, 0), None)
        walk = lambda carry, entry: step(carry, *entry, source)[:2]
        rest = at(inputs, slice(1, None))
        carry, outs = jax.lax.scan(walk, carry, rest, length=self.grid.num_recursions - 1)
        return carry, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, outs)

    def each_block(self, run: Callable, x: Array) -> tuple[Array, Any]:
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
