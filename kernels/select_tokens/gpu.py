"""Top-k of a row on a GPU: bisection on the bits of the k-th score, then one prefix sum.

One program takes a row. Up to CHUNK scores stay in its registers; a longer row is read again from
the cache at every step of the bisection.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from .reference import ordered

CHUNK = 8192  # 16 scores a thread at 16 warps; two counts of a chunk fit one 32-bit word
NOTHING = -(2**31)  # below the image of any score


def select(scores: Float[Array, "B T"], *, k: int, interpret: bool = False) -> Int[Array, "B k"]:
    """Returns the places of the top-k scores, ascending; of equal scores the earlier is taken."""
    batch, length = scores.shape
    if scores.dtype.itemsize > 4:
        raise NotImplementedError(f"orders scores of at most 32 bits, got {scores.dtype}")
    chunk = min(CHUNK, pl.next_power_of_2(length))
    # There are fewer rows than processors: many warps each, for the shortest time of one row.
    warps = min(16, max(1, chunk // 256))
    return pl.pallas_call(
        functools.partial(_kernel, k=k, length=length, chunk=chunk),
        out_shape=jax.ShapeDtypeStruct((batch, k), jnp.int32),
        grid=(batch,),
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name="select_tokens",
    )(scores)


def _kernel(scores_ref, out_ref, *, k, length, chunk):
    row, chunks = pl.program_id(0), pl.cdiv(length, chunk)

    def load(c):
        place = c * chunk + jnp.arange(chunk, dtype=jnp.int32)
        scores = plgpu.load(scores_ref.at[row, place], mask=place < length, other=0.0)
        return place, jnp.where(place < length, ordered(scores), NOTHING)

    if chunks == 1:
        kept = load(0)
        load = lambda c: kept
    kth = _kth(lambda c: load(c)[1], k, length, chunk, chunks)

    over = jax.lax.fori_loop(
        0, chunks, lambda c, n: n + (load(c)[1] > kth).astype(jnp.int32), jnp.zeros(chunk, int)
    )
    ties = k - jnp.sum(over)  # that are kept, of the scores equal to the k-th

    def compact(c, before):
        place, image = load(c)
        above, equal = before
        counts = (image > kth).astype(jnp.int32) + ((image == kth).astype(jnp.int32) << 16)
        upto = jnp.cumsum(counts)
        equals = equal + (upto >> 16)
        keep = (image > kth) | ((image == kth) & (equals <= ties))
        rank = above + (upto & 0xFFFF) + jnp.minimum(equals, ties)
        plgpu.store(out_ref.at[row, jnp.where(keep, rank - 1, k)], place, mask=keep)
        total = jnp.sum(counts)
        return above + (total & 0xFFFF), equal + (total >> 16)

    jax.lax.fori_loop(0, chunks, compact, (jnp.int32(0), jnp.int32(0)))


def _kth(load, k, length, chunk, chunks):
    """Returns the largest bound that at least k images reach."""

    def unsettled(state):
        bit, _, reach = state
        return (bit >= 0) & (reach != k)

    def halve(state):
        bit, bound, reach = state
        higher = bound + (jnp.int32(1) << bit)  # of the sign bit: wraps around to zero
        count = jax.lax.fori_loop(
            0, chunks, lambda c, n: n + (load(c) >= higher).astype(jnp.int32), jnp.zeros(chunk, int)
        )
        count = jnp.sum(count)
        enough = count >= k
        return bit - 1, jnp.where(enough, higher, bound), jnp.where(enough, count, reach)

    start = jnp.int32(31), jnp.int32(NOTHING), jnp.int32(length)
    return jax.lax.while_loop(unsettled, halve, start)[1]
