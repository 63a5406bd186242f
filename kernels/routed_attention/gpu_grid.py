"""Splits attention into blocks on a GPU: a program keeps some, and others pass by."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from ..hopper import LANES, WGMMA, load, load_ahead, run, tiles
from .blocks import meeting, padded, ranges
from .where import UNSEEN, Inputs

ROWS, COLUMNS = WGMMA.reduce(1), WGMMA.reduce(0)  # layouts of a number for each row, or column


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a kernel.

    Attributes:
      warpgroups: those that multiply; each keeps 64 queries, or keys.
      inner: keys, or queries, of a block that is loaded: a multiple of 64.
      stages: blocks in flight.
    """

    warpgroups: int = 2
    inner: int = 128
    stages: int = 2


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

    def at(self, index: Any) -> "Side":
        """Returns one block of several."""
        tokens, numbers = ([ref.at[index] for ref in refs] for refs in (self.tokens, self.numbers))
        return Side(tokens, self.places.at[index], numbers)

    def load(self, into: "Side", row: Any, head: Any, some: Any, barrier: Any) -> None:
        """Copies the block of some tokens of a head."""
        plgpu.copy_gmem_to_smem(self.places.at[row, :, some], into.places, barrier)
        for source, to in zip(self.tokens, into.tokens, strict=True):
            plgpu.copy_gmem_to_smem(source.at[row, some, head], to, barrier)
        for source, to in zip(self.numbers, into.numbers, strict=True):
            plgpu.copy_gmem_to_smem(source.at[row, head, some], to, barrier)


@dataclasses.dataclass(frozen=True)
class Pass:
    """The passing of inner blocks by the block of a warpgroup."""

    ends: list[Array]  # of inner blocks; see `ranges`
    turns: int  # how often they pass: by keys, once for each head of queries that reads them
    by_key: bool  # whether the block is of keys
    mine: Side  # shared memory of the block
    theirs: Side  # of the inner blocks in flight
    loaded: Any  # their barriers
    read: Any

    def hidden(self, scores: Array, slot: Array) -> Array:
        """Returns scores of the block and the inner one in a slot, with masked ones replaced."""
        own = [across(load(self.mine.places.at[i], ROWS), scores) for i in (0, 1)]
        its = [across(load(self.theirs.places.at[slot, i], COLUMNS), scores, 1) for i in (0, 1)]
        is_behind = its[0] >= own[0] if self.by_key else own[0] >= its[0]
        return jnp.where(is_behind & (own[1] == its[1]), scores, UNSEEN)

    def through(self, meet: Callable[..., Any], carry: Any) -> Any:
        """Applies `carry = meet(slot, hide, carry)` to the blocks not fully masked."""

        def turned(turn, carry):
            first = turn * (self.ends[3] - self.ends[0]) - self.ends[0]
            for i, is_masked in enumerate((True, False, True)):

                def step(at, carry, hide=self.hidden if is_masked else lambda x, _: x):
                    slot = jax.lax.rem(first + at, self.read.shape[0])
                    plgpu.barrier_wait(self.loaded.at[slot])
                    made = meet(slot, hide, carry)
                    plgpu.barrier_arrive(self.read.at[slot])
                    return made

                carry = jax.lax.fori_loop(self.ends[i], self.ends[i + 1], step, carry)
            return carry

        if self.turns == 1:
            return turned(0, carry)
        return jax.lax.fori_loop(0, self.turns, turned, carry)


def call(
    body: Callable[..., list[Array]],
    given: Inputs,
    config: Config,
    kept: list[Array],
    passing: list[Array],
    rows: tuple[Array, ...] = (),
    *,
    outs: list[Any],
    by_key: bool = False,
    name: str,
    interpret: Any,
) -> list[Array]:
    """Runs a kernel whose programs keep a block of queries, or of keys, which others pass by.

    The body is the work of a warpgroup that multiplies: it takes a `Pass` and memory for scores,
    replaces its block by results, and returns numbers of each query. `rows` are logarithms and
    other numbers of each query and head [B N T].
    """
    wgs, size, stages = dataclasses.astuple(config)
    blocks = (size, wgs * LANES) if by_key else (wgs * LANES, size)
    (batch, length, _, _), key_length = given.query.shape, given.key.shape[1]
    where = padded(given.where.written_out(batch, length, key_length), *blocks)
    turn = (lambda x: x.swapaxes(1, 2)) if by_key else (lambda x: x)
    ends = ranges(*map(turn, meeting(where, *blocks)))
    places = [jnp.stack(where.arrays[i::2], 1) for i in ((1, 0) if by_key else (0, 1))]
    # Of a query that is padding the logarithm is infinite, and all weights are zero.
    fill = [(0, 0), (0, 0), (0, -length % blocks[0])]
    fills = zip(rows, (jnp.inf, 0.0), strict=False)
    numbers = [jnp.pad(x, fill, constant_values=value) for x, value in fills]
    mine = Side(kept, places[0], [] if by_key else numbers)
    theirs = Side(passing, places[1], numbers if by_key else [])
    heads, others = kept[0].shape[2], passing[0].shape[2]
    turns, each = (others // heads, 1) if by_key else (1, heads // others)
    copies = lambda side: len(jax.tree.leaves(side))
    results = [jax.ShapeDtypeStruct(out.shape, out.dtype) for out in outs]

    def program(given, outs, own, inner, made, weights, begun, loaded, read) -> None:
        ends, mine, theirs = given
        index, head, row = (jax.lax.axis_index(name) for name in ("block", "head", "row"))
        warpgroup = jax.lax.axis_index("warpgroup")
        block = index if by_key else ends.shape[1] - 1 - index
        ends = [ends[row, block, i] for i in range(4)]
        count = ends[3] - ends[0]
        at = lambda refs: [ref.at[warpgroup] for ref in refs]

        def fill(step, slot):
            turn = jax.lax.div(step, jnp.maximum(count, 1))
            some = pl.ds((ends[0] + step - turn * count) * size, size)
            other = head * turns + turn if by_key else jax.lax.div(head, each)
            theirs.load(inner.at(slot), row, other, some, loaded.at[slot])

        @pl.when(warpgroup == wgs)
        def _():
            if wgs == 2:  # registers of a program are 512 for each thread of a warpgroup
                plgpu.set_max_registers(40, action="decrease")
            load_ahead(turns * count, fill, read)

        @pl.when(warpgroup < wgs)
        def _():
            if wgs == 2:
                plgpu.set_max_registers(232, action="increase")
            passed = Pass(ends, turns, by_key, own.at(warpgroup), inner, loaded, read)
            here, ready = pl.ds(block * wgs * LANES + warpgroup * LANES, LANES), begun.at[warpgroup]
            mine.load(passed.mine, row, head, here, ready)
            plgpu.barrier_wait(ready)
            for into, x in zip(at(made), body(passed, weights.at[warpgroup]), strict=True):
                into[...] = x
            plgpu.commit_smem()
            tiled = [out for out in outs if len(out.shape) == 4]
            numbers = [out for out in outs if len(out.shape) == 3]
            for source, out in zip(passed.mine.tokens, tiled, strict=False):
                plgpu.copy_smem_to_gmem(source, out.at[row, here, head])
            for source, out in zip(at(made), numbers, strict=True):
                plgpu.copy_smem_to_gmem(source, out.at[row, head, here])
            plgpu.wait_smem_to_gmem(0)

    return run(
        program,
        (ends, mine, theirs),
        results,
        {
            "own": mine.memory(wgs, LANES),
            "inner": theirs.memory(stages, size),
            "made": [plgpu.SMEM((wgs, LANES), x.dtype) for x in results if len(x.shape) == 3],
            "weights": tiles(wgs, LANES, size),
            "begun": plgpu.Barrier(num_arrivals=copies(mine), num_barriers=wgs),
            "loaded": plgpu.Barrier(num_arrivals=copies(theirs), num_barriers=stages),
            "read": plgpu.Barrier(num_arrivals=wgs, num_barriers=stages),
        },
        # Causal work grows with the query: the longest programs start first.
        grid={"block": ends.shape[1], "head": heads, "row": batch},
        warpgroups=wgs + 1,
        name=name,
        interpret=interpret,
        is_approximate=True,
    )


def across(x: Array, like: Array, axis: int = 0) -> Array:
    """Returns numbers of rows, or of columns with `axis` 1, for each entry of a matrix."""
    return jax.lax.broadcast_in_dim(x, like.shape, [axis])
