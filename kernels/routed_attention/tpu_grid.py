"""Blocks of attention on a TPU, and the plan of the pairs of blocks to visit.

A plan depends on positions and segments alone: layers that share them, and their backward passes,
can share it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from ..visits import Visit, Visits, bounds_of
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """The visits of kernels that keep a block of queries, and of those that keep one of keys.

    Attributes:
      table: what `listed` returned for both: codes in front, and bounds behind. Axes of one are
        for the shards of the batch and of the queries on other devices.
      config: sizes of the blocks.
    """

    table: Any  # [1 1 2 P]; a leaf of a tree, which may hold a shape instead
    config: Config = dataclasses.field(metadata={"static": True})


def listed(
    some: Bool[Array, "B O I"], every: Bool[Array, "B O I"]
) -> tuple[Int[Array, "P"], Int[Array, "bounds"]]:
    """Returns the pairs of blocks to visit, of which those of one outer block are adjacent.

    Args:
      some: which pairs are not fully masked. An outer block without one has one visit all the same.
      every: in which pairs no key is masked.

    Returns:
      codes: four times the number of a pair in [B O I], plus flags. LIVE: not fully masked; EVERY:
        no key is masked.
      bounds: of two parts, if there are outer blocks to divide.

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
    bounds = bounds_of(behind[-1], outer, len(behind) > 1)
    return codes.astype(jnp.int32), bounds.astype(jnp.int32)


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

    def places(self, where: Where) -> Where:
        """Returns positions and segments, padded."""
        where = where.written_out(self.batch, self.length, self.key_length)
        return padded(where, self.query_block, self.key_block)

    @jax.named_scope("attention_plan")
    def plan(self, where: Where) -> Plan:
        """Returns the visits for a mask."""
        some, every = meeting(self.places(where), self.query_block, self.key_block)
        both = listed(some, every), listed(some.swapaxes(1, 2), every.swapaxes(1, 2))
        fill = lambda x: jnp.pad(x, (0, 3 - len(x)))
        rows = [jnp.concatenate([codes, fill(bounds)]) for codes, bounds in both]
        return Plan(jnp.stack(rows)[None, None], Config(self.query_block, self.key_block))

    def visits(self, plan: Plan, *, by_key: bool) -> Visits:
        """Returns the visits of kernels that keep queries, or keys."""
        outers, inners = self._counts(by_key)
        codes, bounds = jnp.split(plan.table[0, 0, int(by_key)], [self.batch * outers * inners])
        bounds = bounds if self.batch * outers > 1 else bounds[:2]
        return Visits(bounds, (codes,), (self.groups,))

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

    def call(
        self,
        kernel: Callable[..., None],
        plan: Plan,
        where: Where,
        arrays: list[tuple[str, Array]],
        *,
        by_key: bool = False,
        outs: list[tuple[str, Any]],
        scratch: list[tuple[int, int]],
        name: str,
        interpret: Any,
    ) -> Any:
        """Runs a kernel once for each visit of each key head; outer blocks may be of keys.

        It takes a function that runs the phases of a visit, the blocks, the places of their queries
        and keys, the results, and the scratch. Arrays, and what the results are like, come with the
        kind of their layout: queries, keys, or rows.
        """
        visits, (outers, inners) = self.visits(plan, by_key=by_key), self._counts(by_key)
        where = self.places(where)
        arrays = [
            *arrays,
            ("query_places", jnp.stack(where.arrays[0::2], 1)),
            ("key_places", jnp.stack(where.arrays[1::2], 1)),
        ]

        def spec(shape: tuple[int | None, ...], at: Callable[..., Any]) -> pl.BlockSpec:
            def index(head: Array, visit: Array, codes: Any) -> Any:
                pair = codes[visit] >> 2
                outer, inner = jax.lax.div(pair, inners), jax.lax.rem(pair, inners)
                row, outer = jax.lax.div(outer, outers), jax.lax.rem(outer, outers)
                return at(row, head, *((inner, outer) if by_key else (outer, inner)))

            return visits.spec(shape, index)

        size, key_size, each = self.query_block, self.key_block, self.each
        specs = {  # of arrays [B K G T H], [B K S H], [B K G T], [B 2 T], [B 2 S]
            "queries": spec(
                (None, None, each, size, self.width), lambda b, k, q, _: (b, k, 0, q, 0)
            ),
            "keys": spec((None, None, key_size, self.width), lambda b, k, _, s: (b, k, s, 0)),
            "rows": spec((None, None, each, size), lambda b, k, q, _: (b, k, 0, q)),
            "query_places": spec((None, 2, size), lambda b, _, q, s: (b, 0, q)),
            "key_places": spec((None, 2, key_size), lambda b, _, q, s: (b, 0, s)),
        }
        return visits.call(
            lambda visit, codes, *refs: kernel(
                functools.partial(_phases, visit, codes, inners), *refs
            ),
            [array for _, array in arrays],
            in_specs=[specs[kind] for kind, _ in arrays],
            out_specs=[specs[kind] for kind, _ in outs],
            out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for _, like in outs],
            scratch=scratch,
            vmem_bytes=VMEM_BYTES,
            name=name,
            interpret=interpret,
        )


def _phases(visit: Visit, codes: Any, inners: int, start: Any, meet: Any, finish: Any) -> None:
    """Runs the phases of a visit; the argument of `meet` says whether any key is masked."""
    at, begin, end = visit
    outer = lambda at: jax.lax.div(codes[jnp.clip(at, begin, end - 1)] >> 2, inners)
    own = outer(at)
    flags = jnp.where(visit.is_idle, 0, codes[visit.last] & (LIVE | EVERY))
    pl.when((at == begin) | (outer(at - 1) != own))(start)
    pl.when(flags == LIVE | EVERY)(lambda: meet(False))
    pl.when(flags == LIVE)(lambda: meet(True))
    pl.when((at == end - 1) | (~visit.is_idle & (outer(at + 1) != own)))(finish)


def _fill(x: Array, axis: int, block: int) -> Array:
    ends = [(0, 0)] * x.ndim
    ends[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, ends)
