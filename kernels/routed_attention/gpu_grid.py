"""Splits attention into blocks on a GPU, and reads and writes the blocks."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool

from .blocks import meeting, padded, ranges
from .where import Where


class Tiles(NamedTuple):
    """Sizes of a kernel: tokens of a block, its warps, and pipelined loads."""

    queries: int
    keys: int
    warps: int
    stages: int


class Span(NamedTuple):
    """A block of tokens; those from `length` on are padding; None: there is no padding."""

    start: Array
    size: int
    length: int | None

    @property
    def slice(self) -> Any:
        """The slice of its tokens."""
        return pl.ds(self.start, self.size)

    def inside(self, shape: tuple[int, ...], width: int) -> Bool[Array, "..."] | None:
        """Returns which entries of heads of `width`, or of single numbers, are not padding."""
        masks = []
        if self.length is not None:
            rows = self.start + jnp.arange(self.size) < self.length
            masks.append(rows.reshape(-1, *[1] * (len(shape) - 1)))
        if len(shape) == 2 and width < shape[1]:
            masks.append(jnp.arange(shape[1])[None, :] < width)
        if not masks:
            return None
        every = masks[0] if len(masks) == 1 else masks[0] & masks[1]
        return jnp.broadcast_to(every, shape)


Kind = Literal["queries", "keys", "rows"]


@dataclasses.dataclass(frozen=True)
class Cut:
    """Queries [B T N H] and keys [B S K H], split into the blocks of a head that programs keep."""

    batch: int
    length: int
    key_length: int
    heads: int
    groups: int
    width: int
    tiles: Tiles
    interpret: bool

    @classmethod
    def of(cls, query: Array, key: Array, tiles: Tiles, interpret: bool) -> "Cut":
        """Returns the cut of queries and keys."""
        (batch, length, heads, width), (_, key_length, groups, _) = query.shape, key.shape
        return cls(batch, length, key_length, heads, groups, width, tiles, interpret)

    def queries(self, block: Array, *, every: bool = False) -> Span:
        """Returns a block of queries; `every`: none is padding."""
        size = self.tiles.queries
        return Span(block * size, size, None if every or not self.length % size else self.length)

    def keys(self, block: Array, *, every: bool = False) -> Span:
        """Returns a block of keys; `every`: none is padding."""
        size = self.tiles.keys
        exist = every or not self.key_length % size
        return Span(block * size, size, None if exist else self.key_length)

    def load(self, ref: Any, span: Span, head: Array | None = None) -> Array:
        """Reads tokens of [T] or [T H], or of a head of [G T] or [T G H]; padding is 0."""
        of_head = (head, span.slice) if len(ref.shape) == 2 else (span.slice, head)
        ref = ref.at[span.slice if head is None else of_head]
        mask = span.inside(ref.shape, self.width)
        return plgpu.load(ref, mask=mask, other=None if mask is None else 0.0)

    def store(self, ref: Any, span: Span, x: Array) -> None:
        """Writes the tokens of [T] or [T H] that are not padding."""
        plgpu.store(ref.at[span.slice], x.astype(ref.dtype), mask=span.inside(x.shape, self.width))

    def dot(self, x: Array, y: Array, *, transposed: bool = False) -> Array:
        """Returns x @ y or x @ y.T in float32."""
        # Three products of 19 bits are near one of float32, at the rate of the tensor cores.
        exact = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        exact = jax.lax.Precision.HIGHEST if self.interpret else exact
        precision = exact if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
        return plgpu.dot(x, y, trans_b=transposed, precision=precision)

    def call(
        self,
        kernel: Callable[..., None],
        where: Where,
        *,
        by_key: bool,
        inputs: Sequence[Kind],
        outputs: Sequence[tuple[Kind, Any]],
        name: str,
    ) -> Callable[..., list[Array]]:
        """Returns a function of arrays that runs a kernel for each block of queries, or of keys.

        Args:
          kernel: takes the ends of the unmasked blocks, positions and segments of queries and of
            keys, and the inputs and outputs, all rows of its head. By key, queries [T G H] and rows
            [G T] are those of all heads that read the key head.
          where: the attention mask.
          by_key: whether programs keep keys and loop over queries.
          inputs: kinds of the arrays; "rows" [B N T] are one number for each query.
          outputs: kinds of the results, and their dtypes.
          name: name of the kernel.
        """
        where = where.written_out(self.batch, self.length, self.key_length)
        where = padded(where, self.tiles.queries, self.tiles.keys)
        some, every = meeting(where, self.tiles.queries, self.tiles.keys)
        turn = (lambda x: x.swapaxes(1, 2)) if by_key else (lambda x: x)
        ends = ranges(turn(some), turn(every))
        query_places, key_places = (
            jnp.stack(where.arrays[0::2], 1),
            jnp.stack(where.arrays[1::2], 1),
        )
        specs, count = self._specs(by_key), ends.shape[1]
        places = lambda x: pl.BlockSpec((None, *x.shape[1:]), lambda _, head, row: (row, 0, 0))
        # Causal work grows with the query: the longest programs start first.
        own = (lambda i: i) if by_key else (lambda i: count - 1 - i)
        shapes = self._shapes()

        def run(*refs: Any) -> None:
            kernel(own(pl.program_id(0)), *refs)

        call = pl.pallas_call(
            run,
            grid=(count, self.groups if by_key else self.heads, self.batch),
            in_specs=[
                pl.BlockSpec((None, None, 4), lambda i, head, row: (row, own(i), 0)),
                places(query_places),
                places(key_places),
                *(specs[kind] for kind in inputs),
            ],
            out_specs=[specs[kind] for kind, _ in outputs],
            out_shape=[jax.ShapeDtypeStruct(shapes[kind], dtype) for kind, dtype in outputs],
            compiler_params=plgpu.CompilerParams(
                num_warps=self.tiles.warps, num_stages=self.tiles.stages
            ),
            name=name,
            interpret=self.interpret,
        )
        return lambda *arrays: call(ends, query_places, key_places, *arrays)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "queries": (self.batch, self.length, self.heads, self.width),
            "keys": (self.batch, self.key_length, self.groups, self.width),
            "rows": (self.batch, self.heads, self.length),
        }

    def _specs(self, by_key: bool) -> dict[str, pl.BlockSpec]:
        """Returns specs of all rows of a head: blocks reach beyond their ends, which masks hide."""
        each = self.heads // self.groups
        width = max(16, pl.next_power_of_2(self.width))
        length = pl.cdiv(self.length, self.tiles.queries) * self.tiles.queries
        key_length = pl.cdiv(self.key_length, self.tiles.keys) * self.tiles.keys
        head = each if by_key else None
        of_key = (lambda n: n) if by_key else (lambda n: n // each)
        at = lambda _, n, row: (row, 0, n, 0)
        return {
            "queries": pl.BlockSpec((None, length, head, width), at),
            "keys": pl.BlockSpec(
                (None, key_length, None, width), lambda _, n, row: (row, 0, of_key(n), 0)
            ),
            "rows": pl.BlockSpec((None, head, length), lambda _, n, row: (row, n, 0)),
        }


def go_through(ends: Any, meet: Callable[..., Any], carry: Any) -> Any:
    """Applies `carry = meet(apart, block, carry)` to every block that is not fully masked.

    `apart` is False for a block without any masked key.
    """
    for i, apart in enumerate((True, False, True)):
        step = lambda block, carry, apart=apart: meet(apart, block, carry)
        carry = jax.lax.fori_loop(ends[i], ends[i + 1], step, carry)
    return carry
