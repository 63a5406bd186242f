"""Blocks of attention on a TPU, and the plan of the pairs of blocks to visit.

A plan depends on positions and segments alone: layers that share them, and their backward passes,
can share it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from .blocks import even, meeting, padded
from .where import Where

LANES = 128
LIVE, EVERY = 1, 2  # flags of a visit
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


class Visits(NamedTuple):
    """Pairs of blocks in the order of visits; those of one outer block are adjacent.

    Attributes:
      codes: four times the number of a pair in [B O I], plus flags. LIVE: not fully masked; EVERY:
        no key is masked. An outer block without a live pair has one visit.
      bounds: the first visit of each part of the list, and the end. Cores of a chip take parts, and
        no two parts share an outer block.
    """

    codes: Int[Array, "P"]
    bounds: Int[Array, "parts+1"]

    @property
    def steps(self) -> Int[Array, ""]:
        """The visits of the longest part."""
        return jnp.diff(self.bounds).max()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """The visits of kernels that keep a block of queries, and of those that keep one of keys.

    Attributes:
      table: codes of both in front, and their bounds behind. Axes of one are for the shards of the
        batch and of the queries on other devices.
      config: sizes of the blocks.
    """

    table: Any  # [1 1 2 P]; a leaf of a tree, which may hold a shape instead
    config: Config = dataclasses.field(metadata={"static": True})


def visits(some: Bool[Array, "B O I"], every: Bool[Array, "B O I"]) -> Visits:
    """Lists the pairs of blocks that are not fully masked, in two parts if there are outer blocks.

    Raises:
      NotImplementedError: if they do not fit into scalar memory.
    """
    count = some.shape[2]
    if some.size > MOST_VISITS:
        raise NotImplementedError(
            f"{some.size} pairs of blocks; its scalar memory takes {MOST_VISITS}"
        )
    some, every = some.astype(jnp.int32), (some & every).astype(jnp.int32)
    flags = (LIVE * some + EVERY * every).reshape(-1, count)
    seen = jnp.cumsum(some, -1).reshape(-1, count)
    needed = jnp.maximum(seen[:, -1], 1)
    behind = jnp.cumsum(needed)
    number = jnp.minimum(jnp.arange(some.size), behind[-1] - 1)
    outer = (behind <= number[:, None]).sum(1)
    inner = (seen[outer] <= (number - (behind - needed)[outer])[:, None]).sum(1) % count
    codes = 4 * (count * outer + inner) + flags[outer, inner]
    ends = behind[-1:]
    if len(behind) > 1:
        ends = jnp.stack([behind[jnp.abs(2 * behind[:-1] - behind[-1]).argmin()], behind[-1]])
    return Visits(codes.astype(jnp.int32), jnp.pad(ends, (1, 0)).astype(jnp.int32))


class Specs(NamedTuple):
    """The block specs of each kind of array."""

    queries: pl.BlockSpec  # [B K G T H]
    keys: pl.BlockSpec  # [B K S H]
    rows: pl.BlockSpec  # [B K G T]
    query_places: pl.BlockSpec  # [B 2 T]
    key_places: pl.BlockSpec  # [B 2 S]


@dataclasses.dataclass(frozen=True)
class Cut:
    """Queries [B T N H] and keys [B S K H] cut into blocks.

    Arrays are laid out by key head, [B K G T H] and [B K S H], and padded to full blocks by
    zeros, as tokens that neither see nor are seen.
    """

    batch: int
    length: int
    key_length: int
    groups: int
    each: int
    width: int
    query_block: int
    key_block: int

    @classmethod
    def of(cls, query: Any, key: Any, config: Config) -> "Cut":
        """Returns the cut of queries and keys into equal blocks of at most so many."""
        (batch, length, heads, width), (_, key_length, groups, _) = query.shape, key.shape
        blocks = even(length, config.queries, LANES), even(key_length, config.keys, LANES)
        return cls(batch, length, key_length, groups, heads // groups, width, *blocks)

    def places(self, where: Where) -> tuple[Where, Int[Array, "B 2 T"], Int[Array, "B 2 S"]]:
        """Returns positions and segments, padded; also as one array of queries and one of keys."""
        where = where.written_out(self.batch, self.length, self.key_length)
        where = padded(where, self.query_block, self.key_block)
        return where, jnp.stack(where.arrays[0::2], 1), jnp.stack(where.arrays[1::2], 1)

    @jax.named_scope("attention_plan")
    def plan(self, where: Where) -> Plan:
        """Returns the visits for a mask."""
        where, *_ = self.places(where)
        some, every = meeting(where, self.query_block, self.key_block)
        both = visits(some, every), visits(some.swapaxes(1, 2), every.swapaxes(1, 2))
        fill = lambda x: jnp.pad(x, (0, 3 - len(x)))
        rows = [jnp.concatenate([each.codes, fill(each.bounds)]) for each in both]
        return Plan(jnp.stack(rows)[None, None], Config(self.query_block, self.key_block))

    def visits(self, plan: Plan, *, by_key: bool) -> Visits:
        """Returns the visits of kernels that keep queries, or keys."""
        outers, inners = self._counts(by_key)
        codes, bounds = jnp.split(plan.table[0, 0, int(by_key)], [self.batch * outers * inners])
        return Visits(codes, bounds if self.batch * outers > 1 else bounds[:2])

    def _counts(self, by_key: bool) -> tuple[int, int]:
        """Returns the numbers of outer and of inner blocks."""
        queries = -(-self.length // self.query_block)
        keys = -(-self.key_length // self.key_block)
        return (keys, queries) if by_key else (queries, keys)

    def queries(self, x: Float[Array, "B T N H"]) -> Float[Array, "B K G T H"]:
        """Lays out an array of the queries."""
        x = x.reshape(self.batch, self.length, self.groups, self.each, self.width)
        return _fill(x.transpose(0, 2, 3, 1, 4), 3, self.query_block)

    def keys(self, x: Float[Array, "B S K H"]) -> Float[Array, "B K S H"]:
        """Lays out an array of the keys."""
        return _fill(x.swapaxes(1, 2), 2, self.key_block)

    def rows(self, x: Float[Array, "B N T"]) -> Float[Array, "B K G T"]:
        """Lays out one number for each query."""
        x = x.reshape(self.batch, self.groups, self.each, self.length)
        return _fill(x, 3, self.query_block)

    def by_token(self, x: Float[Array, "B K G T H"]) -> Float[Array, "B T N H"]:
        """Returns the inverse of `queries`."""
        x = x[:, :, :, : self.length].transpose(0, 3, 1, 2, 4)
        return x.reshape(self.batch, self.length, -1, self.width)

    def by_key(self, x: Float[Array, "B K S H"]) -> Float[Array, "B S K H"]:
        """Returns the inverse of `keys`."""
        return x[:, :, : self.key_length].swapaxes(1, 2)

    def by_query(self, x: Float[Array, "B K G T"]) -> Float[Array, "B N T"]:
        """Returns the inverse of `rows`."""
        return x[..., : self.length].reshape(self.batch, -1, self.length)

    def specs(self, *, by_key: bool) -> Specs:
        """Returns the block specs of kernels whose outer blocks are of queries, or of keys."""
        outers, inners = self._counts(by_key)

        def spec(shape: tuple[int | None, ...], at: Callable[..., Any]) -> pl.BlockSpec:
            def index(part: Array, head: Array, step: Array, codes: Any, bounds: Any) -> Any:
                visit = jnp.minimum(bounds[part] + step, bounds[part + 1] - 1)
                pair = codes[visit] >> 2
                outer, inner = jax.lax.div(pair, inners), jax.lax.rem(pair, inners)
                row, outer = jax.lax.div(outer, outers), jax.lax.rem(outer, outers)
                return at(row, head, *((inner, outer) if by_key else (outer, inner)))

            return pl.BlockSpec(shape, index)

        size, key_size, each = self.query_block, self.key_block, self.each
        return Specs(
            spec((None, None, each, size, self.width), lambda b, k, q, _: (b, k, 0, q, 0)),
            spec((None, None, key_size, self.width), lambda b, k, _, s: (b, k, s, 0)),
            spec((None, None, each, size), lambda b, k, q, _: (b, k, 0, q)),
            spec((None, 2, size), lambda b, _, q, s: (b, 0, q)),
            spec((None, 2, key_size), lambda b, _, q, s: (b, 0, s)),
        )

    def call(
        self,
        kernel: Callable[..., None],
        listed: Visits,
        arrays: tuple[Array, ...],
        *,
        by_key: bool,
        specs: list[pl.BlockSpec],
        out_specs: list[pl.BlockSpec],
        out_shape: list[jax.ShapeDtypeStruct],
        scratch: list[tuple[int, int]],
        name: str,
        interpret: Any,
    ) -> Any:
        """Runs a kernel once for each visit of each key head.

        Args:
          kernel: takes a function that runs the phases of a visit, blocks, and the scratch.
          listed: the visits.
          arrays: laid out inputs, one for each of `specs`.
          by_key: whether the outer blocks are of keys.
          specs: block specs of the inputs.
          out_specs: block specs of the results.
          out_shape: of the results.
          scratch: shapes of float32 arrays that are kept between visits.
          name: name of the kernel.
          interpret: as in `pallas_call`.
        """

        def run(codes: Any, bounds: Any, *refs: Any) -> None:
            kernel(functools.partial(_visit, codes, bounds, self._counts(by_key)[1]), *refs)

        return pl.pallas_call(
            run,
            out_shape=out_shape,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(len(listed.bounds) - 1, self.groups, listed.steps),
                in_specs=specs,
                out_specs=out_specs,
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=VMEM_BYTES,
            ),
            name=name,
            interpret=interpret,
        )(listed.codes, listed.bounds, *arrays)


def _visit(codes: Any, bounds: Any, inners: int, start: Any, meet: Any, finish: Any) -> None:
    """Runs the phases of a visit; the argument of `meet` says whether any key is masked."""
    part = pl.program_id(0)
    visit, begin, end = bounds[part] + pl.program_id(2), bounds[part], bounds[part + 1]
    outer = lambda at: jax.lax.div(codes[jnp.clip(at, begin, end - 1)] >> 2, inners)
    is_visit, own = visit < end, outer(visit)
    flags = jnp.where(is_visit, codes[jnp.minimum(visit, end - 1)] & (LIVE | EVERY), 0)
    pl.when((visit == begin) | (outer(visit - 1) != own))(start)
    pl.when(flags == LIVE | EVERY)(lambda: meet(False))
    pl.when(flags == LIVE)(lambda: meet(True))
    pl.when((visit == end - 1) | (is_visit & (outer(visit + 1) != own)))(finish)


def _fill(x: Array, axis: int, block: int) -> Array:
    ends = [(0, 0)] * x.ndim
    ends[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, ends)
