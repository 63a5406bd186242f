"""Attention cut into blocks on a TPU: a step of the grid for each pair of blocks to visit.

The list of pairs is in scalar memory, known while the program runs: a step reads from it what
blocks to load, ahead of time. The two cores of a chip divide it.
"""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from .plan import BITS, EVERY, FIRST, LAST, LIVE, Visits, places, visits
from .sizes import LANES, OfTpu
from .where import UNSEEN, Inputs, by_key_head

QUERIES, KEYS = 0, 1  # sides
VMEM_BYTES = 48 << 20  # of 128 MB on v5e and v6e, 64 on v5p


class Operand(NamedTuple):
    """An array that a kernel reads or, of which a shape is enough, makes: [B K G T ...].

    Attributes:
      side: whose tokens it is of.
      array: of every key head; or places [B 2 T].
    """

    side: int
    array: Any


@dataclasses.dataclass(frozen=True)
class Grid:
    """Attention cut into blocks, whose arrays are padded by tokens that neither see nor are seen.

    Attributes:
      given: queries [B T N H] and keys [B S K H].
      visits: the pairs of blocks to visit.
      by_key: whether outer blocks, which are kept while inner ones come by, are of keys.
    """

    given: Inputs
    visits: Visits
    by_key: bool = False

    @classmethod
    def of(cls, given: Inputs, config: OfTpu) -> "Grid":
        """Returns the grid by a plan that is given, or one of some sizes."""
        return cls(given, visits("tpu", given, config))

    @property
    def rows(self) -> int:
        """Rows of a block of queries of all heads that read one key head."""
        return self.visits.blocks[QUERIES] * (self.given.query.shape[2] // self.given.key.shape[2])

    def tokens(self, side: int, x: Array) -> Operand:
        """Returns an array [B T N H] of a side laid out by key head: [B K G T H]."""
        return self._filled(side, by_key_head(x, self.given.key.shape[2]))

    def numbers(self, x: Array) -> Operand:
        """Returns numbers [B N T] of each query laid out by key head: [B K G T]."""
        shape = self.given.key.shape[0], self.given.key.shape[2], -1, self.given.query.shape[1]
        return self._filled(QUERIES, x.reshape(shape))

    def _filled(self, side: int, x: Array) -> Operand:
        ends = [(0, 0)] * x.ndim
        ends[3] = (0, -x.shape[3] % self.visits.blocks[side])
        return Operand(side, jnp.pad(x, ends))

    def call(
        self,
        body: Callable[..., None],
        read: dict[str, Operand],
        made: dict[str, Operand],
        scratch: dict[str, tuple[int, int]],
        *,
        name: str,
        interpret: Any,
    ) -> list[Array]:
        """Runs `body(phases, refs)` for each visit of each key head.

        The body passes `phases` what it does when an outer block begins, when it meets an inner
        one, and when it ends. The references have the names of what is read and made, and of the
        scratch, which is of float32 and kept between visits.
        """
        from jax.experimental.pallas import tpu as pltpu  # slow to import, and seldom needed

        query, key = self.given.query, self.given.key
        names, table = [*read, *made, *scratch], self.visits.table[0, 0, int(self.by_key)]
        codes, bounds = table[:-3], table[-3:]
        stand = zip((QUERIES, KEYS), places(self.given, self.visits.blocks), strict=True)
        operands = [*(Operand(*each) for each in stand), *read.values()]

        def run(bounds: Any, codes: Any, queries: Any, keys: Any, *refs: Any) -> None:
            phases = self._phases(bounds, codes, (queries, keys))
            body(phases, SimpleNamespace(**dict(zip(names, refs, strict=True))))

        return pl.pallas_call(
            run,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in made.values()],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(
                    min(2, query.shape[0] * self._count(self.by_key)),
                    key.shape[2],
                    jnp.diff(bounds).max(),
                ),
                in_specs=[self._spec(each) for each in operands],
                out_specs=[self._spec(each) for each in made.values()],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=VMEM_BYTES,
            ),
            name=name,
            interpret=interpret,
        )(bounds, codes, *(x for _, x in operands))

    def _count(self, side: int) -> int:
        length = (self.given.query, self.given.key)[side].shape[1]
        return -(-length // self.visits.blocks[side])

    def _spec(self, operand: Operand) -> pl.BlockSpec:
        """Returns which block of an operand is in memory at each visit."""
        shape, is_place = operand.array.shape, len(operand.array.shape) == 3
        outers, inners = self._count(self.by_key), self._count(not self.by_key)

        def index(part: Array, head: Array, step: Array, bounds: Any, codes: Any) -> Any:
            pair = codes[jnp.minimum(bounds[part] + step, bounds[part + 1] - 1)] >> BITS
            outer, inner = jax.lax.div(pair, inners), jax.lax.rem(pair, inners)
            row, block = jax.lax.div(outer, outers), jax.lax.rem(outer, outers)
            at = block if operand.side == self.by_key else inner
            return (row, 0, at) if is_place else (row, head, 0, at, 0)[: len(shape)]

        size = self.visits.blocks[operand.side]
        block = (None, 2, size) if is_place else (None, None, shape[2], size, *shape[4:])
        return pl.BlockSpec(block, index)

    def _phases(self, bounds: Any, codes: Any, places: tuple[Any, Any]) -> Callable[..., None]:
        """Returns what runs those phases of a body that are due at a visit."""
        number, end = bounds[pl.program_id(0)] + pl.program_id(2), bounds[pl.program_id(0) + 1]
        # Parts are unequal: after the end of one, the core has no more to do.
        flags = jnp.where(number < end, codes[jnp.minimum(number, end - 1)], 0)
        mine, theirs = places[self.by_key], places[not self.by_key]
        hide = lambda scores: hidden(scores, mine, theirs, by_key=self.by_key)

        def phases(start: Any, meet: Any, finish: Any) -> None:
            pl.when(flags & FIRST > 0)(start)
            pl.when(flags & EVERY > 0)(lambda: meet(lambda scores: scores))
            pl.when(flags & (LIVE | EVERY) == LIVE)(lambda: meet(hide))
            pl.when(flags & LAST > 0)(finish)

        return phases


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
