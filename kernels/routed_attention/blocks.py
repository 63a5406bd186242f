"""Block mask: which blocks of queries may see which blocks of keys."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from .where import Inputs, Where

NEVER, ALWAYS = np.iinfo(np.int32).min, np.iinfo(np.int32).max


def even(length: int, most: int, multiple: int) -> int:
    """Returns the size of equal blocks of at most `most` tokens that cover `length` tokens."""
    count = -(-length // most)
    return -(-length // (count * multiple)) * multiple


def padded(where: Where, query_block: int, key_block: int) -> Where:
    """Returns positions and segments padded to full blocks; padding neither sees nor is seen."""
    query_positions, key_positions, query_segments, key_segments = where.arrays

    def pad(x: Array, block: int, **filled: Any) -> Array:
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)), **filled)

    return Where(
        pad(query_positions, query_block, constant_values=NEVER),
        pad(key_positions, key_block, constant_values=ALWAYS),
        pad(query_segments, query_block, mode="edge"),
        pad(key_segments, key_block, mode="edge"),
    )


def places(given: Inputs, blocks: tuple[int, int]) -> list[Int[Array, "B 2 _"]]:
    """Returns positions and segments of the queries, and of the keys, padded to full blocks."""
    arrays = padded(given.written_out(), *blocks).arrays
    return [jnp.stack(arrays[side::2], 1) for side in (0, 1)]


def meeting(
    where: Where, query_block: int, key_block: int
) -> tuple[Bool[Array, "B Q K"], Bool[Array, "B Q K"]]:
    """Returns which blocks are not fully masked, and in which no key is masked.

    Both are computed from the least and the greatest position and segment of each block, and from
    its first key and last query by segment, then position: if documents are packed in order, only
    these tell the end of one from the start of the next. The first result may be true for a fully
    masked block, and the second false for an unmasked one.
    """
    query_positions, key_positions, query_segments, key_segments = where.arrays
    cut = lambda x, block: x.reshape(len(x), -1, block)
    ends = lambda x: (x.min(-1), x.max(-1))
    here, mine = cut(query_positions, query_block), cut(query_segments, query_block)
    there, its = cut(key_positions, key_block), cut(key_segments, key_block)
    (least, latest), (low, high) = ends(here), ends(mine)
    (earliest, greatest), (bottom, top) = ends(there), ends(its)
    last = jnp.where(mine == high[..., None], here, NEVER).max(-1)
    first = jnp.where(its == bottom[..., None], there, ALWAYS).min(-1)
    least, latest, low, high, last = (x[:, :, None] for x in (least, latest, low, high, last))
    earliest, greatest, bottom, top, first = (
        x[:, None, :] for x in (earliest, greatest, bottom, top, first)
    )
    begun = (bottom < high) | ((bottom == high) & (first <= last))
    some = (earliest <= latest) & (top >= low) & begun
    every = (greatest <= least) & (low == high) & (bottom == top) & (low == bottom)
    return some, every


def ranges(some: Bool[Array, "B O I"], every: Bool[Array, "B O I"]) -> Int[Array, "B O 4"]:
    """Returns the range of inner blocks for each outer one, as four ends.

    The blocks from the first end to the second, and from the third to the fourth, need a mask;
    those between the second and the third do not. All others are fully masked.
    """
    count = some.shape[-1]
    index = jnp.arange(count)
    first = jnp.where(some, index, count).min(-1)
    end = jnp.where(some, index + 1, 0).max(-1)
    first = jnp.minimum(first, end)
    start = jnp.minimum(jnp.where(every, index, count).min(-1), end)
    stop = jnp.where(~every & (index > start[..., None]), index, count).min(-1)
    return jnp.stack([first, start, jnp.clip(stop, start, end), end], -1).astype(jnp.int32)
