"""Gathers rows of a sequence on a GPU: a program copies a few rows."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

TILE = 8192  # numbers of a program: each thread of 4 warps has 8 loads of 16 bytes under way


def gather(
    x: Float[Array, "B T D"], index: Int[Array, "B C"], *, interpret: bool = False
) -> Float[Array, "B C D"]:
    """Returns the rows of `x` at `index`, which lies in [0, T)."""
    (batch, _, width), count = x.shape, index.shape[1]
    rows, lanes = tile(count, width, TILE)
    return pl.pallas_call(
        lambda *refs: _kernel(*refs, rows=rows, lanes=lanes),
        out_shape=jax.ShapeDtypeStruct((batch, count, width), x.dtype),
        grid=(pl.cdiv(count, rows), pl.cdiv(width, lanes), batch),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="gather_tokens",
    )(x, index)


def tile(rows: int, width: int, numbers: int) -> tuple[int, int]:
    """Returns the rows and lanes of a program, powers of two: whole rows up to 2048 lanes."""
    lanes = min(2048, pl.next_power_of_2(width))
    return min(max(1, numbers // lanes), pl.next_power_of_2(rows)), lanes


def _kernel(x_ref, index_ref, out_ref, *, rows, lanes):
    _, count, width = out_ref.shape
    batch = pl.program_id(2)
    c = pl.program_id(0) * rows + jnp.arange(rows, dtype=jnp.int32)
    d = (pl.program_id(1) * lanes + jnp.arange(lanes, dtype=jnp.int32))[None]
    mask = (c < count)[:, None] & (d < width)
    place = plgpu.load(index_ref.at[batch, c], mask=c < count, other=0)
    row = plgpu.load(x_ref.at[batch, place[:, None], d], mask=mask, other=0.0)
    plgpu.store(out_ref.at[batch, c[:, None], d], row, mask=mask)
