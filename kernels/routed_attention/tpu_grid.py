"""Splits attention into blocks on a TPU, and lists the pairs of blocks to visit."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from .blocks import ALWAYS, even, meeting, padded
from .where import Where

LANES = 128
FIRST, LAST, LIVE, EVERY = 1, 2, 4, 8  # flags of a visit, below the bits of its blocks
MOST_VISITS = 1 << 17  # half of the scalar memory
VMEM_BYTES = 48 << 20  # of 128 MB on v5e and v6e, 64 on v5p
Kind = Literal["queries", "keys", "query_rows", "query_places", "key_places"]


class Visits(NamedTuple):
    """Pairs of blocks in the order of visits; those of one outer block are adjacent.

    Attributes:
      codes: row, outer block, inner block and flags, packed into one integer for each visit, for
        all must fit into scalar memory. Flags: FIRST and LAST visit of the outer block; LIVE: not
        fully masked; EVERY: no key is masked.
      count: number of codes that are visited.
      bits: bits of the inner block, and of the outer one.
    """

    codes: Int[Array, "P"]
    count: Int[Array, ""]
    bits: tuple[int, int]

    def blocks(self, code: Array) -> tuple[Array, Array, Array]:
        """Returns the row, the outer and the inner block of a code."""
        inner, outer = self.bits
        code = code >> 4
        return (
            code >> (inner + outer),
            (code >> inner) & ((1 << outer) - 1),
            code & ((1 << inner) - 1),
        )


def visits(some: Bool[Array, "B O I"], every: Bool[Array, "B O I"]) -> Visits:
    """Lists the pairs of blocks that are not fully masked, and each outer block at least once.

    Raises:
      NotImplementedError: if they do not fit into scalar memory.
    """
    row, outer, inner = (jax.lax.broadcasted_iota(jnp.int32, some.shape, axis) for axis in range(3))
    bits = (some.shape[2] - 1).bit_length(), (some.shape[1] - 1).bit_length()
    if some.size > MOST_VISITS or some.shape[0] << (sum(bits) + 4) >= ALWAYS:
        raise NotImplementedError(
            f"{some.size} pairs of blocks; its scalar memory takes {MOST_VISITS}"
        )
    outer = (row << bits[1]) + outer
    codes = (((outer << bits[0]) + inner) << 4) + LIVE * some + EVERY * every
    visited = some | (~some.any(-1, keepdims=True) & (inner == 0))
    codes = jnp.sort(jnp.where(visited, codes, ALWAYS), axis=None)
    outer = jnp.pad(codes >> (bits[0] + 4), 1, constant_values=-1)
    codes += FIRST * (outer[1:-1] != outer[:-2]) + LAST * (outer[1:-1] != outer[2:])
    return Visits(codes, visited.sum(), bits)


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
    def of(cls, query: Array, key: Array, blocks: tuple[int, int] | None) -> "Cut":
        """Returns the cut of queries and keys into blocks of so many queries of a head and keys.

        None is up to 1024 x 512 scores: 2 MB in float32, a few of which fit into VMEM, and work
        enough (100 MFLOP at width 64) to hide the third of a microsecond that a step costs. Rows
        of less than 4096 keys take 256 at a time, since the diagonal wastes half a block; float32
        takes half as many queries, for its products are of many passes.
        """
        (batch, length, heads, width), (_, key_length, groups, _) = query.shape, key.shape
        each, rows = heads // groups, 2048 // query.dtype.itemsize
        most = max(LANES, min(512, rows // each // LANES * LANES))
        keys = min(512 if key_length >= 4096 else 256, 512 * rows // (each * most))
        most = (most, max(LANES, keys))
        most = most if blocks is None else blocks
        query_block, key_block = even(length, most[0], LANES), even(key_length, most[1], LANES)
        return cls(batch, length, key_length, groups, each, width, query_block, key_block)

    def places(self, where: Where) -> tuple[Where, Int[Array, "B 2 T"], Int[Array, "B 2 S"]]:
        """Returns positions and segments, padded; also as one array of queries and one of keys."""
        where = where.written_out(self.batch, self.length, self.key_length)
        where = padded(where, self.query_block, self.key_block)
        return where, jnp.stack(where.arrays[0::2], 1), jnp.stack(where.arrays[1::2], 1)

    def queries(self, x: Float[Array, "B T N H"]) -> Float[Array, "B K G T H"]:
        """Lays out an array of the queries."""
        x = x.reshape(self.batch, self.length, self.groups, self.each, self.width)
        return self._fill(x.transpose(0, 2, 3, 1, 4), 3, self.query_block)

    def keys(self, x: Float[Array, "B S K H"]) -> Float[Array, "B K S H"]:
        """Lays out an array of the keys."""
        return self._fill(x.swapaxes(1, 2), 2, self.key_block)

    def query_rows(self, x: Float[Array, "B N T"]) -> Float[Array, "B K G T"]:
        """Lays out one number for each query."""
        x = x.reshape(self.batch, self.groups, self.each, self.length)
        return self._fill(x, 3, self.query_block)

    def by_token(self, x: Float[Array, "B K G T H"]) -> Float[Array, "B T N H"]:
        """Returns the inverse of `queries`."""
        x = x[:, :, :, : self.length].transpose(0, 3, 1, 2, 4)
        return x.reshape(self.batch, self.length, -1, self.width)

    def by_key(self, x: Float[Array, "B K S H"]) -> Float[Array, "B S K H"]:
        """Returns the inverse of `keys`."""
        return x[:, :, : self.key_length].swapaxes(1, 2)

    def by_query(self, x: Float[Array, "B K G T"]) -> Float[Array, "B N T"]:
        """Returns the inverse of `query_rows`."""
        return x[..., : self.length].reshape(self.batch, -1, self.length)

    def _fill(self, x: Array, axis: int, block: int) -> Array:
        ends = [(0, 0)] * x.ndim
        ends[axis] = (0, -x.shape[axis] % block)
        return jnp.pad(x, ends)

    def call(
        self,
        kernel: Callable[..., None],
        where: Where,
        *,
        by_key: bool,
        inputs: Sequence[Kind],
        outputs: Sequence[tuple[Kind, Any]],
        scratch: Sequence[tuple[int, int]],
        name: str,
        interpret: Any,
    ) -> Callable[..., Any]:
        """Returns a function of laid out arrays that runs a kernel once for each visited pair.

        Args:
          kernel: takes the visit's code, blocks of the inputs and outputs, and the scratch.
          where: the padded attention mask.
          by_key: whether the outer blocks are of keys, and the inner ones of queries.
          inputs: kinds of the arrays.
          outputs: kinds of the results, and their dtypes.
          scratch: shapes of float32 arrays that are kept between visits.
          name: name of the kernel.
          interpret: as in `pallas_call`.
        """
        some, every = meeting(where, self.query_block, self.key_block)
        turn = (lambda x: x.swapaxes(1, 2)) if by_key else (lambda x: x)
        listed = visits(turn(some), turn(every))
        specs, shapes = self._specs(listed, by_key), self._shapes(where)

        def run(codes: Any, *refs: Any) -> None:
            kernel(codes[pl.program_id(1)], *refs)

        return lambda *arrays: pl.pallas_call(
            run,
            out_shape=[jax.ShapeDtypeStruct(shapes[kind], dtype) for kind, dtype in outputs],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(self.groups, listed.count),
                in_specs=[specs[kind] for kind in inputs],
                out_specs=[specs[kind] for kind, _ in outputs],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
            ),
            name=name,
            interpret=interpret,
        )(listed.codes, *arrays)

    def _shapes(self, where: Where) -> dict[str, tuple[int, ...]]:
        heads = self.batch, self.groups
        length, key_length = (x.shape[1] for x in where.arrays[:2])
        return {
            "queries": (*heads, self.each, length, self.width),
            "keys": (*heads, key_length, self.width),
            "query_rows": (*heads, self.each, length),
        }

    def _specs(self, listed: Visits, by_key: bool) -> dict[str, pl.BlockSpec]:
        """Returns the block specs of each kind of array."""

        def spec(shape: tuple[int | None, ...], at: Callable[..., Any]) -> pl.BlockSpec:
            def index(head: Array, visit: Array, codes: Any) -> tuple[Any, ...]:
                row, outer, inner = listed.blocks(codes[visit])
                return at(row, head, *((inner, outer) if by_key else (outer, inner)))

            return pl.BlockSpec(shape, index)

        size, key_size, each = self.query_block, self.key_block, self.each
        return {
            "queries": spec(
                (None, None, each, size, self.width), lambda b, k, q, _: (b, k, 0, q, 0)
            ),
            "keys": spec((None, None, key_size, self.width), lambda b, k, _, s: (b, k, s, 0)),
            "query_rows": spec((None, None, each, size), lambda b, k, q, _: (b, k, 0, q)),
            "query_places": spec((None, 2, size), lambda b, _, q, s: (b, 0, q)),
            "key_places": spec((None, 2, key_size), lambda b, _, q, s: (b, 0, s)),
        }
