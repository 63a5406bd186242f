"""Gathers rows of a sequence on a TPU, row by row from a slab of columns in vector memory.
A TPU reads HBM in tiles of eight rows or more, so single rows cannot be fetched. Instead all rows
of a sequence are read once, a slab of columns at a time, in any order of the index.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

LANES = 128
BLOCK = 512  # indices a step: enough rows to hide the cost of a step
UNROLL = 8  # rows copied in one iteration of a loop
PART = 128  # rows of a slab processed at a time
BUDGET = 14 << 20  # bytes of vector memory, of the 16 MiB that every TPU has
LIMIT = 44 << 20  # of the 64 MiB and more since v5, for sequences too long for that


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a sequence is split into slabs and its indices into steps.

    Attributes:
      count: indices in a step.
      steps: number of steps.
      lanes: columns in a slab.
      slabs: number of slabs.
      held: bytes of vector memory in use.
    """

    count: int
    steps: int
    lanes: int
    slabs: int
    held: int


def plan(length: int, count: int, width: int, row_bytes: int, block_bytes: int) -> Plan:
    """Returns the widest slabs that fit, cut evenly.

    Args:
      length: rows of a sequence, all of which a slab holds.
      count: indices.
      width: numbers of a row.
      row_bytes: of vector memory for each number of the slab.
      block_bytes: of vector memory for each number of a step's rows.

    Raises:
      NotImplementedError: if not even one column of registers fits.
    """
    steps = pl.cdiv(count, BLOCK)
    block = pl.cdiv(pl.cdiv(count, steps), LANES) * LANES
    column = (length * row_bytes + block * block_bytes) * LANES  # of registers
    if column > LIMIT:
        raise NotImplementedError(
            f"holds {LANES} columns of a sequence in {LIMIT >> 20} MiB of vector memory; "
            f"{length} rows take {column >> 20}"
        )
    columns = pl.cdiv(width, LANES)
    slabs = pl.cdiv(columns, max(1, BUDGET // column))
    each = pl.cdiv(columns, slabs)
    return Plan(block, steps, width if slabs == 1 else each * LANES, slabs, each * column)


def whole_tiles(x: Float[Array, "B T D"]) -> Float[Array, "B P D"]:
    """Returns `x` padded with rows to full tiles.

    Raises:
      NotImplementedError: for numbers that do not make words of 32 bits.
    """
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"moves float32 and bfloat16, got {x.dtype}")
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % 16), (0, 0)))


def padded(index: Int[Array, "B C"], plan: Plan, fill: int) -> Int[Array, "B 1 P"]:
    """Returns indices for all steps, as blocks that fit scalar memory."""
    more = plan.count * plan.steps - index.shape[1]
    return jnp.pad(index, ((0, 0), (0, more)), constant_values=fill)[:, None]


def indices(plan: Plan) -> pl.BlockSpec:
    """Returns a step's indices, for a grid of batch, slabs and steps."""
    return pl.BlockSpec((None, 1, plan.count), lambda b, d, c: (b, 0, c), memory_space=pltpu.SMEM)


def slab(length: int, plan: Plan) -> pl.BlockSpec:
    """Returns all rows of some columns."""
    return pl.BlockSpec((None, length, plan.lanes), lambda b, d, c: (b, 0, d))


def block(plan: Plan) -> pl.BlockSpec:
    """Returns a step's rows of some columns."""
    return pl.BlockSpec((None, plan.count, plan.lanes), lambda b, d, c: (b, c, d))


def rows_left(count: int, plan: Plan) -> Any:
    """Returns how many of this step's rows are among `count`."""
    return jnp.minimum(plan.count, count - pl.program_id(2) * plan.count)


def params(cut: Plan, order: Literal["parallel", "arbitrary"] = "parallel") -> pltpu.CompilerParams:
    """Returns compiler parameters: steps of a slab run in order; slabs too, if "arbitrary"."""
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", order, "arbitrary"),
        vmem_limit_bytes=max(16 << 20, cut.held + (4 << 20)),
    )


def by_parts(rows: int, body: Callable[[Any, int], None]) -> None:
    """Runs `body(start, size)` over all rows, some at a time, so that the code stays small."""

    @pl.loop(0, rows // PART)
    def _(i):
        body(pl.multiple_of(i * PART, PART), PART)

    if rest := rows % PART:
        body(rows - rest, rest)


def to_words(from_ref, words_ref) -> None:
    """Copies rows as words of 32 bits, which alone can be addressed: 16-bit rows, two a word."""

    each = from_ref.shape[0] // words_ref.shape[0]

    def copy(start, size):
        rows = from_ref[pl.ds(each * start, each * size), :]
        words_ref[pl.ds(start, size), :] = pltpu.bitcast(rows, jnp.int32)

    by_parts(words_ref.shape[0], copy)


def word_rows(rows: int, dtype: jax.typing.DTypeLike) -> int:
    """Returns the rows of words that hold rows of numbers."""
    return rows // (4 // jnp.dtype(dtype).itemsize)


def each_row(rows: Any, step: Callable[[Any], None]) -> None:
    """Runs `step` for rows from 0, at least `rows` of them: up to the next multiple of UNROLL."""

    @pl.loop(0, pl.cdiv(rows, UNROLL))
    def _(i):
        for j in range(UNROLL):
            step(i * UNROLL + j)


def pick(index_ref, words_ref, picked_ref, rows: Any, dtype: jax.typing.DTypeLike) -> None:
    """Copies the first indexed rows of numbers side by side, as words."""
    each = 4 // jnp.dtype(dtype).itemsize
    if each == 1:
        row = lambda c: words_ref[pl.ds(index_ref[0, c], 1), :]
    else:

        def half(c):
            place = index_ref[0, c]
            pair = words_ref[pl.ds(place >> 1, 1), :]
            return jax.lax.shift_right_logical(pair, (place & 1) * 16) & 0xFFFF

        row = lambda c: half(2 * c) | (half(2 * c + 1) << 16)

    def copy(c):
        picked_ref[pl.ds(c, 1), :] = row(c)

    each_row(pl.cdiv(rows, each), copy)


def gather(
    x: Float[Array, "B T D"], index: Int[Array, "B C"], *, interpret: bool = False
) -> Float[Array, "B C D"]:
    """Returns the rows of `x` at `index`, which lies in [0, T)."""
    (batch, _, width), count = x.shape, index.shape[1]
    x = whole_tiles(x)
    length = x.shape[1]
    held = 3 * x.dtype.itemsize  # one being loaded, one in use, one as words
    cut = plan(length, count, width, held, held)
    return pl.pallas_call(
        lambda *refs: _kernel(*refs, rows=rows_left(count, cut)),
        out_shape=jax.ShapeDtypeStruct((batch, count, width), x.dtype),
        grid=(batch, cut.slabs, cut.steps),
        in_specs=[indices(cut), slab(length, cut)],
        out_specs=block(cut),
        scratch_shapes=[
            pltpu.VMEM((word_rows(length, x.dtype), cut.lanes), jnp.int32),
            pltpu.VMEM((word_rows(cut.count, x.dtype), cut.lanes), jnp.int32),
        ],
        compiler_params=params(cut),
        interpret=interpret,
        name="gather_tokens",
    )(padded(index, cut, 0), x)


def _kernel(index_ref, x_ref, out_ref, words_ref, picked_ref, *, rows):
    @pl.when(pl.program_id(2) == 0)
    def _():
        to_words(x_ref, words_ref)

    pick(index_ref, words_ref, picked_ref, rows, x_ref.dtype)
    out_ref[...] = pltpu.bitcast(picked_ref[...], out_ref.dtype)
