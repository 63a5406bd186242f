"""Blocks of attention on a TPU, and the plan of the pairs of blocks to visit.

A plan depends on positions and segments alone: layers that share them, and their backward passes,
can share it. It is a list in scalar memory, known while the program runs: a step of the grid, of
which there are as many as of visits, reads from it what blocks to load, ahead of time. The two
cores of a chip divide it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Int

from .blocks import even, meeting, padded
from .where import UNSEEN, Inputs, Where, by_key_head

LANES = 128
QUERIES, KEYS = 0, 1  # sides
LIVE, EVERY, FIRST, LAST, BITS = 1, 2, 4, 8, 4  # flags of a visit, and how many there are
MOST_VISITS = 1 << 17  # half of the scalar memory
VMEM_BYTES = 48 << 20  # of 128 MB on v5e and v6e, 64 on v5p


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the largest block, in tokens: queries of each head, and keys."""

    queries: int
    keys: int

    def __post_init__(self):
        """Raises ValueError for sizes that are no multiple of a row of lanes."""
        if self.queries % LANES or self.keys % LANES:
            raise ValueError(f"got {self.queries} and {self.keys}, takes multiples of {LANES}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """The visits of kernels that keep a block of queries, and of those that keep one of keys.

    Attributes:
      table: what `listed` returned for both, one after the other. Axes of one are for the shards of
        the batch and of the queries on other devices.
      config: sizes of the blocks.
    """

    table: Any  # [1 1 2 P]; a leaf of a tree, which may hold a shape instead
    config: Config = dataclasses.field(metadata={"static": True})


@jax.named_scope("attention_plan")
def planned(query: Any, key: Any, where: Where, config: Config) -> Plan:
    """Returns the visits for a mask of queries [B T N H] and keys [B S K H] in equal blocks."""
    config = Config(
        even(query.shape[1], config.queries, LANES), even(key.shape[1], config.keys, LANES)
    )
    some, every = meeting(_places(query, key, where, config), config.queries, config.keys)
    both = listed(some, every), listed(some.swapaxes(1, 2), every.swapaxes(1, 2))
    return Plan(jnp.stack([jnp.concatenate(each) for each in both])[None, None], config)


def listed(
    some: Bool[Array, "B O I"], every: Bool[Array, "B O I"]
) -> tuple[Int[Array, "P"], Int[Array, "3"]]:
    """Returns the pairs of blocks to visit, of which those of one outer block are adjacent.

    Args:
      some: which pairs are not fully masked. An outer block without one has one visit all the same.
      every: in which pairs no key is masked.

    Returns:
      codes: the number of a pair in [B O I], above its flags. LIVE: not fully masked; EVERY: no key
        is masked; FIRST and LAST of its outer block.
      bounds: of two parts that share no outer block; the second is empty if there is one block.

    Raises:
      NotImplementedError: if they do not fit into scalar memory.
    """
    if some.size > MOST_VISITS:
        raise NotImplementedError(
            f"{some.size} pairs of blocks; its scalar memory takes {MOST_VISITS}"
        )
    is_empty = ~some.any(2, keepdims=True)
    visited = some | (is_empty & (jnp.arange(some.shape[2]) == 0))
    seen = jnp.cumsum(visited, 2)
    flag = lambda code, is_set: jnp.where(is_set, code, 0)
    flags = flag(LIVE, some) | flag(EVERY, some & every)
    flags |= flag(FIRST, seen == 1) | flag(LAST, seen == seen[..., -1:])
    codes = (jnp.arange(some.size) << BITS) + flags.reshape(-1)
    codes = jnp.sort(jnp.where(visited.reshape(-1), codes, np.iinfo(np.int32).max))
    total, end = visited.sum(), jnp.arange(1, some.size + 1)
    is_cut = (codes & LAST > 0) & (end <= total)
    half = end[jnp.where(is_cut, jnp.abs(2 * end - total), np.iinfo(np.int32).max).argmin()]
    return codes.astype(jnp.int32), jnp.stack([0 * total, half, total]).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Attention cut into blocks, whose arrays are padded by tokens that neither see nor are seen.

    Attributes:
      given: queries [B T N H] and keys [B S K H].
      plan: the visits, and sizes of the blocks.
    """

    given: Inputs
    plan: Plan

    @classmethod
    def of(cls, given: Inputs, config: Config) -> "Grid":
        """Returns the grid by a plan that is given, or one of some sizes."""
        plan = given.where.plan
        return cls(given, plan or planned(given.query, given.key, given.where, config))

    @property
    def rows(self) -> int:
        """Rows of a block of queries of all heads that read one key head."""
        return self.plan.config.queries * (self.given.query.shape[2] // self.given.key.shape[2])

    def tokens(self, side: int, *arrays: Array) -> list[tuple[int, Array]]:
        """Returns arrays [B T N H] of a side laid out by key head: [B K G T H]."""
        groups = self.given.key.shape[2]
        return [(side, self._fill(side, by_key_head(x, groups), 3)) for x in arrays]

    def numbers(self, *arrays: Array) -> list[tuple[int, Array]]:
        """Returns numbers [B N T] of each query laid out by key head: [B K G T]."""
        shape = self.given.key.shape[0], self.given.key.shape[2], -1, self.given.query.shape[1]
        return [(QUERIES, self._fill(QUERIES, x.reshape(shape), 3)) for x in arrays]

    def _fill(self, side: int, x: Array, axis: int) -> Array:
        ends = [(0, 0)] * x.ndim
        ends[axis] = (0, -x.shape[axis] % dataclasses.astuple(self.plan.config)[side])
        return jnp.pad(x, ends)

    def call(
        self,
        body: Callable[..., None],
        arrays: list[tuple[int, Array]],
        outs: list[tuple[int, Any]],
        scratch: list[tuple[int, int]],
        *,
        by_key: bool = False,
        name: str,
        interpret: Any,
    ) -> Any:
        """Runs `body(phases, *arrays, *results, *scratch)` for each visit of each key head.

        Outer blocks are of queries, or of keys. The body passes `phases` what it does when a block
        begins, when it meets an inner one, and when it ends. Arrays, and what the results are like,
        come with their side; the scratch is of float32, and kept between visits.
        """
        from jax.experimental.pallas import tpu as pltpu  # slow to import, and seldom needed

        blocks, groups = dataclasses.astuple(self.plan.config), self.given.key.shape[2]
        query, key, _, where, _ = self.given
        counts = [-(-x.shape[1] // block) for x, block in zip((query, key), blocks, strict=True)]
        outers, inners = counts[::-1] if by_key else counts
        table = self.plan.table[0, 0, int(by_key)]
        codes, bounds = table[:-3], table[-3:]
        places = _places(query, key, where, self.plan.config).arrays
        sides = [(side, jnp.stack(places[side::2], 1)) for side in (QUERIES, KEYS)]
        arrays = [*sides, *arrays]

        def spec(side: int, x: Any) -> pl.BlockSpec:
            def index(part: Array, head: Array, step: Array, bounds: Any, codes: Any) -> Any:
                pair = codes[jnp.minimum(bounds[part] + step, bounds[part + 1] - 1)] >> BITS
                outer, inner = jax.lax.div(pair, inners), jax.lax.rem(pair, inners)
                row, block = jax.lax.div(outer, outers), jax.lax.rem(outer, outers)
                at = inner if by_key == (side == QUERIES) else block
                return (row, 0, at) if x.ndim == 3 else (row, head, 0, at, 0)[: x.ndim]

            if x.ndim == 3:  # places [B 2 T]
                return pl.BlockSpec((None, 2, blocks[side]), index)
            return pl.BlockSpec((None, None, x.shape[2], blocks[side], *x.shape[4:]), index)

        def run(bounds: Any, codes: Any, query_places: Any, key_places: Any, *refs: Any) -> None:
            number, end = bounds[pl.program_id(0)] + pl.program_id(2), bounds[pl.program_id(0) + 1]
            # Parts are unequal: after the end of one, the core has no more to do.
            flags = jnp.where(number < end, codes[jnp.minimum(number, end - 1)], 0)
            mine, theirs = (key_places, query_places) if by_key else (query_places, key_places)
            hide = lambda scores: hidden(scores, mine, theirs, by_key=by_key)

            def phases(start: Any, meet: Any, finish: Any) -> None:
                pl.when(flags & FIRST > 0)(start)
                pl.when(flags & EVERY > 0)(lambda: meet(lambda scores: scores))
                pl.when(flags & (LIVE | EVERY) == LIVE)(lambda: meet(hide))
                pl.when(flags & LAST > 0)(finish)

            body(phases, *refs)

        parts = min(2, query.shape[0] * outers)
        return pl.pallas_call(
            run,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in outs],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(parts, groups, jnp.diff(bounds).max()),
                in_specs=[spec(*each) for each in arrays],
                out_specs=[spec(*each) for each in outs],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=VMEM_BYTES,
            ),
            name=name,
            interpret=interpret,
        )(bounds, codes, *(x for _, x in arrays))


def hidden(scores: Array, mine: Any, theirs: Any, *, by_key: bool) -> Array:
    """Returns scores with masked ones replaced, of rows and columns by the places of each.

    Either side may repeat, once for each head: the rows, or with `by_key` the columns.
    """
    columns = theirs.shape[1]
    position, segment = (across(upright(mine[i : i + 1, :]), columns) for i in (0, 1))
    is_behind = theirs[0:1, :] >= position if by_key else position >= theirs[0:1, :]
    sees = is_behind & (segment == theirs[1:2, :])
    sees = jnp.concatenate([sees] * (scores.size // sees.size), axis=int(by_key))
    return jnp.where(sees, scores, UNSEEN)


def across(x: Array, width: int) -> Array:
    """Returns a column in every lane [T L] as so many columns."""
    return x[:, :width] if width <= LANES else jnp.tile(x, (1, -(-width // LANES)))[:, :width]


def upright(row: Array) -> Array:
    """Returns a row [1 T] as a column, repeated in every lane."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _places(query: Any, key: Any, where: Where, config: Config) -> Where:
    """Returns positions and segments, padded."""
    where = where.written_out(query.shape[0], query.shape[1], key.shape[1])
    return padded(where, config.queries, config.keys)
