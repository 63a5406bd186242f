"""The plan of attention: which blocks of keys meet which blocks of queries.

It depends on positions and segments alone, so layers that share them, and their backward passes,
share it. XLA moves it out of no loop: it is made outside of the one over the layers.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from .where import Inputs, Where

NEVER, ALWAYS = np.iinfo(np.int32).min, np.iinfo(np.int32).max
LIVE, EVERY, FIRST, LAST, BITS = 1, 2, 4, 8, 4  # flags of a visit, and how many there are
MOST_VISITS = 1 << 17  # half of a TPU's scalar memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visits:
    """Which pairs of blocks a kernel visits.

    Attributes:
      table: of a TPU's kernels, what `listed` returned for those that keep a block of queries and
        for those that keep one of keys [1 1 2 P]; of a GPU's, what `ranges` returned [1 1 B O 4].
        Axes of one are for the shards of the batch and of the queries on other devices.
      blocks: sizes of the blocks of queries and of keys.
    """

    table: Any  # a leaf of a tree, which may hold a shape instead
    blocks: tuple[int, int] = dataclasses.field(metadata={"static": True})


Plan = dict[str, Visits]  # of the kernels tpu, gpu_forward, gpu_query and gpu_key


def visits(kernel: str, given: Inputs, config: Any) -> Visits:
    """Returns the planned visits of a kernel, or else lists those of blocks of some sizes."""
    if given.where.plan and kernel in given.where.plan:
        return given.where.plan[kernel]
    lengths = given.query.shape[1], given.key.shape[1]
    blocks = config.blocks(*lengths, kernel == "gpu_key")
    return Visits(block_table(given.written_out(), blocks, kernel), blocks)


@functools.partial(jax.jit, static_argnums=(1, 2))  # so that a program says how often it is called
def block_table(where: Where, blocks: tuple[int, int], kernel: str) -> Array:
    """Returns the table of a kernel's visits to blocks of some sizes."""
    by_query = meeting(padded(where, *blocks), *blocks)
    by_key = [x.swapaxes(1, 2) for x in by_query]
    if kernel == "tpu":
        both = listed(*by_query), listed(*by_key)
        return jnp.stack([jnp.concatenate(each) for each in both])[None, None]
    return ranges(*(by_key if kernel == "gpu_key" else by_query))[None, None]


def listed(
    some: Bool[Array, "B O I"], every: Bool[Array, "B O I"]
) -> tuple[Int[Array, "P"], Int[Array, "3"]]:
    """Returns the pairs of blocks to visit, of which those of one outer block are adjacent.

    Args:
      some: which pairs are not fully masked. An outer block without one has one visit all the same.
      every: in which pairs no key is masked.

    Returns:
      codes: the number of a pair in [B O I], above its flags. LIVE: not fully masked; EVERY: no key
        is masked; FIRST and LAST of its outer block.
      bounds: of two parts that share no outer block; the second is empty if there is one block.

    Raises:
      NotImplementedError: if they do not fit into scalar memory.
    """
    if some.size > MOST_VISITS:
        raise NotImplementedError(
            f"{some.size} pairs of blocks; its scalar memory takes {MOST_VISITS}"
        )
    is_empty = ~some.any(2, keepdims=True)
    visited = some | (is_empty & (jnp.arange(some.shape[2]) == 0))
    seen = jnp.cumsum(visited, 2)
    flag = lambda code, is_set: jnp.where(is_set, code, 0)
    flags = flag(LIVE, some) | flag(EVERY, some & every)
    flags |= flag(FIRST, seen == 1) | flag(LAST, seen == seen[..., -1:])
    codes = (jnp.arange(some.size) << BITS) + flags.reshape(-1)
    codes = jnp.sort(jnp.where(visited.reshape(-1), codes, np.iinfo(np.int32).max))
    total, end = visited.sum(), jnp.arange(1, some.size + 1)
    is_cut = (codes & LAST > 0) & (end <= total)
    half = end[jnp.where(is_cut, jnp.abs(2 * end - total), np.iinfo(np.int32).max).argmin()]
    return codes.astype(jnp.int32), jnp.stack([0 * total, half, total]).astype(jnp.int32)


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
