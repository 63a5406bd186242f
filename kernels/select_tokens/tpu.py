"""Top-k of eight rows at once on a TPU, without a sort, a gather or a scatter.
One bisection finds the bits of the k-th score, another the place of the last of equal scores that
is kept. Then log2(T) shifts compact the selected tokens: each moves left by the number of tokens
before it that are not selected, one bit of that number at a time, the lowest first, so that no two
collide.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from .reference import ordered

ROWS, LANES = 8, 128  # of a vector register
WIDTH = 2048  # lanes processed at a time: 16 registers, so that a few such values fit in all 64
LIMIT = 131072  # scores of a row: eight of them, and what is made of them, take 24 MiB


def select(scores: Float[Array, "B T"], *, k: int, interpret: bool = False) -> Int[Array, "B k"]:
    """Returns the places of the top-k scores, ascending; of equal scores the earlier is taken."""
    batch, length = scores.shape
    if scores.dtype.itemsize > 4:
        raise NotImplementedError(f"orders scores of at most 32 bits, got {scores.dtype}")
    if length > LIMIT:
        raise NotImplementedError(f"holds rows of at most {LIMIT} scores, got {length}")
    rows, width = min(ROWS, batch), min(WIDTH, pl.cdiv(length, LANES) * LANES)
    padded = pl.cdiv(length, width) * width
    # Places after the last only tie with real ones, and ties go to the earlier.
    scores = jnp.pad(
        scores.astype(jnp.float32), ((0, 0), (0, padded - length)), constant_values=-jnp.inf
    )
    return pl.pallas_call(
        functools.partial(_kernel, k=k, width=width),
        out_shape=jax.ShapeDtypeStruct((batch, k), jnp.int32),
        grid=(pl.cdiv(batch, rows),),
        in_specs=[pl.BlockSpec((rows, padded), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((rows, k), lambda i: (i, 0)),
        scratch_shapes=[
            pltpu.VMEM((rows, padded), jnp.int32),
            pltpu.VMEM((rows, padded + width), jnp.int32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=(8 << 20) + 6 * 4 * ROWS * padded,  # scores and places come in pairs
        ),
        interpret=interpret,
        name="select_tokens",
    )(scores)


def _kernel(scores_ref, out_ref, image_ref, left_ref, *, k, width):
    rows, length = image_ref.shape
    chunks, bits = length // width, (length - 1).bit_length()
    lane = jax.lax.broadcasted_iota(jnp.int32, (rows, width), 1)
    part = lambda c: (slice(None), pl.ds(pl.multiple_of(c * width, LANES), width))

    @pl.loop(0, chunks)
    def _(c):
        image_ref[part(c)] = ordered(scores_ref[part(c)])

    def count(which):
        """Returns for how many of each row `which(image, place)` is true."""
        # Sums of ones in float32 are exact to 2**24.
        add = lambda c, n: n + jnp.where(which(image_ref[part(c)], lane + c * width), 1.0, 0.0)
        ones = jax.lax.fori_loop(0, chunks, add, jnp.zeros((rows, width), jnp.float32))
        return jnp.sum(ones, axis=1, keepdims=True)

    def raise_kth(i, kth):
        higher = kth + (jnp.int32(1) << (31 - i))  # of the sign bit: wraps around to zero
        return jnp.where(count(lambda image, _: image >= higher) >= k, higher, kth)

    least = jnp.full((rows, 1), -(2**31), jnp.int32)
    kth = jax.lax.fori_loop(0, 32, raise_kth, least)
    ties = k - count(lambda image, _: image > kth)

    def raise_end(i, end):
        later = end + (jnp.int32(1) << (bits - i))
        kept = count(lambda image, place: (image == kth) & (place < later))
        return jnp.where(kept <= ties, later, end)

    end = jax.lax.fori_loop(0, bits + 1, raise_end, jnp.zeros((rows, 1), jnp.int32))

    def distance(c, before):
        """Writes how far each kept token goes left; those before this chunk are counted."""
        image, place = image_ref[part(c)], lane + c * width
        keep = (image > kth) | ((image == kth) & (place < end))
        upto = jnp.where(keep, 1, 0)
        for bit in range((width - 1).bit_length()):
            upto += jnp.where(lane >= 1 << bit, pltpu.roll(upto, 1 << bit, 1), 0)
        left_ref[part(c)] = jnp.where(keep, place + 1 - before - upto, 0)
        return before + upto[:, -1:]

    jax.lax.fori_loop(0, chunks, distance, jnp.zeros((rows, 1), jnp.int32))
    left_ref[part(chunks)] = jnp.zeros((rows, width), jnp.int32)
    for bit in range(bits):
        _shift(left_ref, part, lane, chunks, bit)

    place = lambda c: left_ref[part(c)] + lane + c * width

    @pl.loop(0, k // width)
    def _(c):
        out_ref[part(c)] = place(c)

    if rest := k % width:
        out_ref[:, k - rest :] = place(k // width)[:, :rest]


def _shift(left_ref, part, lane, chunks, bit):
    """Moves tokens whose distance has this bit left by its value, one chunk after the other."""
    width = lane.shape[1]
    over, by = divmod(1 << bit, width)

    @pl.loop(0, chunks)
    def _(c):
        left = left_ref[part(c)]
        if by:
            here, next_ = (pltpu.roll(x, width - by, 1) for x in (left, left_ref[part(c + 1)]))
            moved = jnp.where(lane < width - by, here, next_)
        else:
            moved = left_ref[part(jnp.minimum(c + over, chunks))]  # nothing is past the end
        stays = jnp.where((left >> bit) & 1 == 1, 0, left)
        left_ref[part(c)] = jnp.where((moved >> bit) & 1 == 1, moved, stays)
