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

from .blocks import meeting, padded, ranges
from .where import Inputs, Where

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
