"""A factor of a product on a GPU: tiles of rows as they are, or gathered while they are loaded."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from ..hopper import LANES, SWIZZLE, WGMMA, load, tiles
from .reference import Rows


class Factor(NamedTuple):
    """Shared memory of one factor; gathered rows are copied one by one, then laid out as a tile.

    Attributes:
      loaded: the tiles in flight.
      settled: the tile that is made of gathered rows, if they are.
    """

    loaded: Any
    settled: Any = None

    @classmethod
    def memory(cls, take: Any, stages: int, rows: int, columns: int) -> "Factor":
        """Returns the types of the memory of tiles, whose rows are gathered by `take`."""
        if take is None:
            return cls(tiles(stages, rows, columns))
        # Swizzled pieces of rows of 128 bytes: reading eight of them meets no bank twice.
        pieces = stages, columns // LANES, rows, LANES
        loaded = plgpu.SMEM(pieces, jnp.bfloat16, transforms=(SWIZZLE,))
        return cls(loaded, tiles(rows, columns))

    @property
    def copies(self) -> int:
        """Number of copies for a tile: one, or one for each 128 bytes of a gathered row."""
        return 1 if self.settled is None else math.prod(self.loaded.shape[1:3])

    @property
    def lag(self) -> int:
        """Products that may be under way while the next tile is made."""
        return 1 if self.settled is None else 0

    def fill(self, source: Rows, first: Array, column: Array, slot: Array, barrier: Any) -> None:
        """Copies a tile from a row and a column on; the last row is copied again after it."""
        array: Any = source[0]  # a reference
        take, into = source[1], self.loaded.at[slot]
        if take is None:
            rows, columns = into.shape
            tile = array.at[pl.ds(first, rows), pl.ds(column, columns)]
            return plgpu.copy_gmem_to_smem(tile, into, barrier)
        pieces, rows, _ = into.shape

        @pl.loop(0, rows)
        def _(row):
            at = take[jnp.minimum(first + row, take.shape[0] - 1)]
            for piece in range(pieces):
                one = array.at[pl.ds(at, 1), pl.ds(column + piece * LANES, LANES)]
                plgpu.copy_gmem_to_smem(one, into.at[piece, pl.ds(row, 1)], barrier)

    def tile(self, slot: Array, rest: Any = None) -> Any:
        """Returns a tile as tensor cores read it, with zeros from row `rest` on."""
        tile = self.loaded.at[slot]

        def keep(x):
            if rest is None:
                return x
            is_in = plgpu.broadcasted_iota(jnp.int32, x.shape, 0, layout=WGMMA) < rest
            return jnp.where(is_in, x, jnp.zeros_like(x))

        if self.settled is not None:
            for piece in range(tile.shape[0]):
                self.settled[:, pl.ds(piece * LANES, LANES)] = keep(load(tile.at[piece]))
            plgpu.commit_smem()
            return self.settled
        if rest is not None:

            @pl.when(rest < tile.shape[0])
            def _():
                tile[...] = keep(tile[...])
                plgpu.commit_smem()

        return tile
