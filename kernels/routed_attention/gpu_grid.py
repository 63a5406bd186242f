"""Attention cut into blocks on a GPU: a program keeps one, and others pass by it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from ..hopper import LANES, WGMMA, load, load_ahead, run, tiles
from .plan import places, visits
from .sizes import OfGpu
from .where import UNSEEN, Inputs

ROWS, COLUMNS = WGMMA.reduce(1), WGMMA.reduce(0)  # layouts of a number for each row, or column


class Side(NamedTuple):
    """What is loaded together of queries, or of keys; in memory of a block, or of several.

    Attributes:
      tokens: arrays [B T N H].
      places: positions and segments [B 2 T].
      numbers: arrays [B N T].
    """

    tokens: list[Any]
    places: Any
    numbers: list[Any]

    def memory(self, count: int, size: int) -> "Side":
        """Returns the types of shared memory for `count` blocks of so many tokens."""
        return Side(
            [tiles(count, size, each.shape[3]) for each in self.tokens],
            plgpu.SMEM((count, 2, size), jnp.int32),
            [plgpu.SMEM((count, size), jnp.float32) for _ in self.numbers],
        )

    def barriers(self, count: int) -> Any:
        """Returns the type of barriers for `count` blocks, each of as many copies as arrays."""
        return plgpu.Barrier(num_arrivals=len(jax.tree.leaves(self)), num_barriers=count)

    def at(self, index: Any) -> "Side":
        """Returns one block of several."""
        return jax.tree.map(lambda ref: ref.at[index], self)

    def load(self, into: "Side", row: Any, head: Any, some: Any, barrier: Any) -> None:
        """Copies the block of some tokens of a head."""
        plgpu.copy_gmem_to_smem(self.places.at[row, :, some], into.places, barrier)
        for source, to in zip(self.tokens, into.tokens, strict=True):
            plgpu.copy_gmem_to_smem(source.at[row, some, head], to, barrier)
        for source, to in zip(self.numbers, into.numbers, strict=True):
            plgpu.copy_gmem_to_smem(source.at[row, head, some], to, barrier)


class Program:
    """A warpgroup of a program, which keeps a block of a head that inner blocks pass by."""

    def __init__(self, table: Any, memory: SimpleNamespace, group: int, by_key: bool) -> None:
        """Reads which block it is.

        Args:
          table: ends of the inner blocks of each block; see `ranges`.
          memory: of all warpgroups.
          group: heads of queries that read a head of keys.
          by_key: whether the block is of keys: inner blocks pass once for each head of queries.
        """
        axes = "block", "head", "row", "warpgroup"
        index, self.head, self.row, self.warpgroup = map(jax.lax.axis_index, axes)
        # Causal work grows with the query: the longest programs start first.
        self.block = index if by_key else table.shape[1] - 1 - index
        self.ends = [table[self.row, self.block, i] for i in range(4)]
        self.count = self.ends[3] - self.ends[0]
        self.memory, self.group, self.by_key = memory, group, by_key
        self.turns = group if by_key else 1
        self.mine, self.weights = memory.own.at(self.warpgroup), memory.weights.at[self.warpgroup]
        self.theirs = memory.inner

    def load_inner(self, source: Side) -> None:
        """Loads the inner blocks, ahead of the warpgroups that read them."""
        size, count = self.theirs.places.shape[2], self.count

        def fill(step, slot):
            turn = jax.lax.div(step, jnp.maximum(count, 1))
            some = pl.ds((self.ends[0] + step - turn * count) * size, size)
            by_query = lambda: jax.lax.div(self.head, self.group)
            head = self.head * self.group + turn if self.by_key else by_query()
            barrier = self.memory.loaded.at[slot]
            source.load(self.theirs.at(slot), self.row, head, some, barrier)

        load_ahead(self.turns * count, fill, self.memory.read)

    def keep(self, source: Side, body: Callable[..., Any], tokens: Any, numbers: Any) -> None:
        """Loads its part of the block, and writes what the body makes of it."""
        begun = self.memory.begun
        here = pl.ds(self.block * begun.shape[0] * LANES + self.warpgroup * LANES, LANES)
        ready = begun.at[self.warpgroup]
        source.load(self.mine, self.row, self.head, here, ready)
        plgpu.barrier_wait(ready)
        made = [ref.at[self.warpgroup] for ref in self.memory.made]
        for into, x in zip(made, body(self), strict=True):
            into[...] = x
        plgpu.commit_smem()
        for x, out in zip(self.mine.tokens, tokens, strict=False):
            plgpu.copy_smem_to_gmem(x, out.at[self.row, here, self.head])
        for x, out in zip(made, numbers, strict=True):
            plgpu.copy_smem_to_gmem(x, out.at[self.row, self.head, here])
        plgpu.wait_smem_to_gmem(0)

    def through(self, meet: Callable[..., Any], carry: Any) -> Any:
        """Applies `carry = meet(slot, hide, carry)` to the inner blocks not fully masked."""
        loaded, read = self.memory.loaded, self.memory.read

        def turned(turn, carry):
            first = turn * (self.ends[3] - self.ends[0]) - self.ends[0]
            for i, is_masked in enumerate((True, False, True)):

                def step(at, carry, hide=self._hidden if is_masked else lambda x, _: x):
                    slot = jax.lax.rem(first + at, read.shape[0])
                    plgpu.barrier_wait(loaded.at[slot])
                    made = meet(slot, hide, carry)
                    plgpu.barrier_arrive(read.at[slot])
                    return made

                carry = jax.lax.fori_loop(self.ends[i], self.ends[i + 1], step, carry)
            return carry

        if self.turns == 1:
            return turned(0, carry)
        return jax.lax.fori_loop(0, self.turns, turned, carry)

    def _hidden(self, scores: Array, slot: Array) -> Array:
        """Returns scores of the block and the inner one in a slot, with masked ones replaced."""
        own = [across(load(self.mine.places.at[i], ROWS), scores) for i in (0, 1)]
        its = [across(load(self.theirs.places.at[slot, i], COLUMNS), scores, 1) for i in (0, 1)]
        is_behind = its[0] >= own[0] if self.by_key else own[0] >= its[0]
        return jnp.where(is_behind & (own[1] == its[1]), scores, UNSEEN)


def call(
    body: Callable[[Program], list[Array]],
    kernel: str,
    given: Inputs,
    config: OfGpu,
    queries: list[Array],
    keys: list[Array],
    numbers: tuple[Array, ...] = (),
    *,
    replaced: int = 1,
    made: int = 0,
    interpret: Any,
) -> list[Array]:
    """Runs a kernel whose programs keep a block of queries, or of keys, which others pass by.

    The body is the work of a warpgroup that multiplies: it replaces the first of its arrays by
    results, and returns numbers of each query. `kernel` is the name in a plan.
    """
    blocks, by_key = visits(kernel, given, config), kernel == "gpu_key"
    sides = _sides(given, blocks.blocks, queries, keys, numbers)
    mine, theirs = sides[::-1] if by_key else sides
    group, table = queries[0].shape[2] // keys[0].shape[2], blocks.table[0, 0]
    wgs, inner, stages = blocks.blocks[by_key] // LANES, blocks.blocks[not by_key], config.stages
    like = mine.tokens[0]
    number = jax.ShapeDtypeStruct((*like.shape[::2], mine.places.shape[2]), jnp.float32)
    results = [jax.ShapeDtypeStruct(like.shape, like.dtype)] * replaced + [number] * made

    def run_program(given: Any, outs: Any, memory: SimpleNamespace) -> None:
        table, mine, theirs = given
        program = Program(table, memory, group, by_key)

        @pl.when(program.warpgroup == wgs)
        def _():
            if wgs == 2:  # registers of a program are 512 for each thread of a warpgroup
                plgpu.set_max_registers(40, action="decrease")
            program.load_inner(theirs)

        @pl.when(program.warpgroup < wgs)
        def _():
            if wgs == 2:
                plgpu.set_max_registers(232, action="increase")
            program.keep(mine, body, outs[:replaced], outs[replaced:])

    memory = {
        "own": mine.memory(wgs, LANES),
        "begun": mine.barriers(wgs),  # `own` is loaded
        "inner": theirs.memory(stages, inner),
        "loaded": theirs.barriers(stages),  # one of `inner` is
        "read": plgpu.Barrier(num_arrivals=wgs, num_barriers=stages),  # and read by all
        "weights": tiles(wgs, LANES, inner),
        "made": [plgpu.SMEM((wgs, LANES), jnp.float32)] * made,
    }
    grid = {"block": table.shape[1], "head": like.shape[2], "row": table.shape[0]}
    return run(
        run_program, (table, mine, theirs), results, memory, grid=grid, warpgroups=wgs + 1,
        name=kernel.replace("gpu", "routed_attention"), interpret=interpret, is_approximate=True,
    )  # fmt: skip


def _sides(
    given: Inputs,
    blocks: tuple[int, int],
    queries: list[Array],
    keys: list[Array],
    numbers: tuple[Array, ...],
) -> tuple[Side, Side]:
    """Returns what is loaded of queries and of keys."""
    of_queries, of_keys = places(given, blocks)
    # Of a query that is padding the logarithm is infinite, and all weights are zero.
    fill = [(0, 0), (0, 0), (0, -given.query.shape[1] % blocks[0])]
    each = zip(numbers, (jnp.inf, 0.0), strict=False)
    filled = [jnp.pad(x, fill, constant_values=value) for x, value in each]
    return Side(queries, of_queries, filled), Side(keys, of_keys, [])


def across(x: Array, like: Array, axis: int = 0) -> Array:
    """Returns numbers of rows, or of columns with `axis` 1, for each entry of a matrix."""
    return jax.lax.broadcast_in_dim(x, like.shape, [axis])
