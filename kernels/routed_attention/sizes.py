"""Sizes of the blocks of attention, computed from shapes; no kernel is imported for them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .plan import even
from .where import Inputs, Scoring, decline

LANES = 128  # of a TPU
WARPGROUP = 64  # queries or keys that one keeps


@dataclasses.dataclass(frozen=True)
class OfTpu:
    """Sizes of the largest block, in tokens: queries of each head, and keys."""

    queries: int
    keys: int

    def __post_init__(self):
        """Raises ValueError for sizes that are no multiple of a row of lanes."""
        if self.queries % LANES or self.keys % LANES:
            raise ValueError(f"got {self.queries} and {self.keys}, takes multiples of {LANES}")

    def blocks(self, length: int, key_length: int, by_key: bool) -> tuple[int, int]:
        """Returns the sizes of equal blocks of so many queries and keys."""
        return even(length, self.queries, LANES), even(key_length, self.keys, LANES)


@dataclasses.dataclass(frozen=True)
class OfGpu:
    """Sizes of a kernel.

    Attributes:
      warpgroups: those that multiply; each keeps 64 queries, or keys.
      inner: keys, or queries, of a block that is loaded: a multiple of 64.
      stages: blocks in flight.
    """

    warpgroups: int = 2
    inner: int = 128
    stages: int = 2

    def blocks(self, length: int, key_length: int, by_key: bool) -> tuple[int, int]:
        """Returns the sizes of blocks of queries and of keys, which are kept if `by_key`."""
        kept = self.warpgroups * WARPGROUP
        return (self.inner, kept) if by_key else (kept, self.inner)


def sized_by(given: Inputs, *_: Any) -> list[jax.ShapeDtypeStruct]:
    """Returns lengths, query heads of a key head and width: what a plan knows of calls to come."""
    query, key = given.query, given.key
    known = query.shape[1], key.shape[1], query.shape[2] // key.shape[2], query.shape[3]
    return [jax.ShapeDtypeStruct(known, query.dtype)]


def of_tpu(given: Inputs, *_: Any, scoring: Scoring) -> OfTpu:
    """Returns the sizes of the kernels for a TPU: up to 1024 x 512 scores.

    That is 2 MB in float32, a few of which fit into VMEM, and work enough (100 MFLOP at width 64)
    to hide the third of a microsecond that a step costs. Rows of less than 4096 keys take 256 at a
    time, since the diagonal wastes half a block; float32 takes half as many queries, for its
    products are of many passes.
    """
    query, key = given.query, given.key
    _check(given, scoring, jnp.float32, jnp.bfloat16)
    if query.shape[2] > 32 * key.shape[2]:
        raise NotImplementedError("it takes at most 32 query heads to a key head")
    each, rows = query.shape[2] // key.shape[2], 2048 // query.dtype.itemsize
    most = max(LANES, min(512, rows // each // LANES * LANES))
    keys = min(512 if key.shape[1] >= 4096 else 256, 512 * rows // (each * most))
    return OfTpu(most, max(LANES, keys // LANES * LANES))


def of_gpu_forward(given: Inputs, *, scoring: Scoring) -> OfGpu:
    """Returns the sizes of the forward pass, whose blocks fit the 227 KiB of shared memory."""
    _check(given, scoring, jnp.bfloat16)  # tensor cores multiply no float32
    return OfGpu(inner=64 if given.query.shape[3] > 128 else 128)


def of_gpu_backward(given: Inputs, *_: Any, scoring: Scoring) -> OfGpu:
    """Returns the sizes of the backward pass, whose scores and sums fit the registers."""
    _check(given, scoring, jnp.bfloat16)
    return OfGpu(warpgroups=1 if given.query.shape[3] > 128 else 2, inner=64)


def _check(given: Inputs, scoring: Scoring, *dtypes: Any) -> None:
    decline(given, scoring, dtypes, 256)
    if scoring.window:
        raise NotImplementedError("it has no window")
