"""Splits attention into blocks on a GPU: a program keeps some, and others pass by."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from ..hopper import LANES, WGMMA, load, load_ahead, tiles
from .blocks import meeting, padded, ranges
from .where import Where

UNSEEN = float(np.finfo(np.float32).min)
ROWS, COLUMNS = WGMMA.reduce(1), WGMMA.reduce(0)  # layouts of a number for each row, or column


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a kernel.

    Attributes:
      warpgroups: those that multiply; each keeps 64 queries, or keys.
      inner: keys, or queries, of a block that is loaded: a multiple of 64.
      stages: blocks in flight.
    """

    warpgroups: int = 2
    inner: int = 128
    stages: int = 2


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What the three kernels share: the outer blocks that programs keep, the inner that pass by."""

    config: Config
    interpret: Any
    scale: float
    lengths: tuple[int, int]

    def call(
        self,
        body: Callable[..., list[Array]],
        where: Where,
        kept: tuple[Array, ...],
        passing: tuple[Array, ...],
        rows: Sequence[Array] = (),
        *,
        outs: Any,
        name: str,
        by_key: bool = False,
    ) -> list[Array]:
        """Runs a kernel.

        Args:
          body: the work of a warpgroup that multiplies.
          where: the attention mask.
          kept: arrays of which a program keeps a block; of keys if `by_key`, or else of queries.
          passing: arrays whose blocks pass by.
          rows: numbers of each query and head [B N T].
          outs: shapes of the results: one block of each is made by a program.
          name: name of the kernel.
          by_key: whether programs keep keys.
        """
        size, block = self.config.warpgroups * LANES, self.config.inner
        batch, _, heads, width = kept[0].shape
        blocks = (block, size) if by_key else (size, block)
        where = padded(where.written_out(batch, *self.lengths), *blocks)
        some, every = meeting(where, *blocks)
        turn = (lambda x: x.swapaxes(1, 2)) if by_key else (lambda x: x)
        ends = ranges(turn(some), turn(every))
        places = [jnp.stack(where.arrays[i::2], 1) for i in ((1, 0) if by_key else (0, 1))]
        fill = [(0, 0), (0, 0), (0, -self.lengths[0] % blocks[0])]
        # Of a query that is padding the logarithm is infinite, and all weights are zero.
        fills = zip(rows, (jnp.inf, 0.0), strict=False)
        rows = [jnp.pad(x, fill, constant_values=value) for x, value in fills]
        wgs, stages = self.config.warpgroups, self.config.stages
        row_shape = (stages, block) if by_key else (wgs, LANES)
        per_step, own = len(passing) + 1, len(kept) + 1
        per_step, own = (per_step + len(rows), own) if by_key else (per_step, own + len(rows))
        return plgpu.kernel(
            functools.partial(self._program, body, len(kept), len(passing), len(rows), by_key),
            out_type=[jax.ShapeDtypeStruct(out.shape, out.dtype) for out in outs],
            scratch_types={
                "mine": [tiles(wgs, LANES, width) for _ in kept],
                "theirs": [tiles(stages, block, width) for _ in passing],
                "numbers": [plgpu.SMEM(row_shape, jnp.float32) for _ in rows or (1,)],
                "places": [
                    plgpu.SMEM((wgs, 2, LANES), jnp.int32),
                    plgpu.SMEM((stages, 2, block), jnp.int32),
                ],
                "weights": tiles(wgs, LANES, block),
                "begun": plgpu.Barrier(num_arrivals=own, num_barriers=wgs),
                "loaded": plgpu.Barrier(num_arrivals=per_step, num_barriers=stages),
                "read": plgpu.Barrier(num_arrivals=wgs, num_barriers=stages),
            },
            # Causal work grows with the query: the longest programs start first.
            grid=(ends.shape[1], heads, batch),
            grid_names=("block", "head", "row"),
            num_threads=wgs + 1,
            thread_name="warpgroup",
            kernel_name=name,
            compiler_params=plgpu.CompilerParams(approx_math=True),
            interpret=self.interpret,
        )(ends, *places, *kept, *passing, *rows)

    def _program(self, body, kept, passing, rows, by_key, ends, own_places, inner_places, *refs,
                 mine, theirs, numbers, places, weights, begun, loaded, read) -> None:  # fmt: skip
        kept, passing = refs[:kept], refs[kept : kept + passing]
        others = refs[len(kept) + len(passing) :]
        rows, outs = others[:rows], others[rows:]
        index, head, row = (jax.lax.axis_index(name) for name in ("block", "head", "row"))
        block = index if by_key else ends.shape[1] - 1 - index
        warpgroup, wgs = jax.lax.axis_index("warpgroup"), self.config.warpgroups
        ends = [ends[row, block, i] for i in range(4)]
        count, size = ends[3] - ends[0], self.config.inner
        turns = passing[0].shape[2] // kept[0].shape[2] if by_key else 1
        each = 1 if by_key else kept[0].shape[2] // passing[0].shape[2]

        def fill(step, slot):
            turn = jax.lax.div(step, jnp.maximum(count, 1))
            start = (ends[0] + step - turn * count) * size
            at = row, pl.ds(start, size), head * turns + turn if by_key else jax.lax.div(head, each)
            for source, into in zip(passing, theirs, strict=True):
                plgpu.copy_gmem_to_smem(source.at[at], into.at[slot], loaded.at[slot])
            spots = inner_places.at[row, :, pl.ds(start, size)]
            plgpu.copy_gmem_to_smem(spots, places[1].at[slot], loaded.at[slot])
            for source, into in zip(rows if by_key else (), numbers, strict=False):
                some = source.at[row, at[2], pl.ds(start, size)]
                plgpu.copy_gmem_to_smem(some, into.at[slot], loaded.at[slot])

        @pl.when(warpgroup == wgs)
        def _():
            if wgs == 2:  # registers of a program are 512 for each thread of a warpgroup
                plgpu.set_max_registers(40, action="decrease")
            load_ahead(turns * count, fill, read)

        @pl.when(warpgroup < wgs)
        def _():
            if wgs == 2:
                plgpu.set_max_registers(232, action="increase")
            here, ready = pl.ds(block * wgs * LANES + warpgroup * LANES, LANES), begun.at[warpgroup]
            for source, into in zip(kept, mine, strict=True):
                plgpu.copy_gmem_to_smem(source.at[row, here, head], into.at[warpgroup], ready)
            plgpu.copy_gmem_to_smem(own_places.at[row, :, here], places[0].at[warpgroup], ready)
            for source, into in zip(() if by_key else rows, numbers, strict=False):
                plgpu.copy_gmem_to_smem(source.at[row, head, here], into.at[warpgroup], ready)
            plgpu.barrier_wait(ready)
            position, segment = (load(places[0].at[warpgroup, i], ROWS) for i in (0, 1))

            def hide(scores, slot):
                at, of = (across(load(places[1].at[slot, i], COLUMNS), scores, 1) for i in (0, 1))
                own, same = across(position, scores), across(segment, scores) == of
                return jnp.where((at >= own if by_key else own >= at) & same, scores, UNSEEN)

            def through(meet, carry):
                """Applies `carry = meet(slot, hide, carry)` to the blocks not fully masked."""

                def turned(turn, carry):
                    for i, is_masked in enumerate((True, False, True)):

                        def step(at, carry, is_masked=is_masked):
                            slot = jax.lax.rem(turn * count + at - ends[0], read.shape[0])
                            plgpu.barrier_wait(loaded.at[slot])
                            made = meet(slot, hide if is_masked else lambda x, _: x, carry)
                            plgpu.barrier_arrive(read.at[slot])
                            return made

                        carry = jax.lax.fori_loop(ends[i], ends[i + 1], step, carry)
                    return carry

                return (
                    turned(0, carry) if turns == 1 else jax.lax.fori_loop(0, turns, turned, carry)
                )

            of = lambda refs: [ref.at[warpgroup] for ref in refs]
            own = of(mine)
            made = body(
                self.scale,
                through,
                own,
                theirs,
                numbers if by_key else of(numbers),
                weights.at[warpgroup],
            )
            for into, x in zip(of(numbers), made, strict=False):
                into[...] = x
            plgpu.commit_smem()
            tiled = len(outs) - len(made)
            for source, out in zip(own, outs[:tiled], strict=False):
                plgpu.copy_smem_to_gmem(source, out.at[row, here, head])
            for source, out in zip(of(numbers), outs[tiled:], strict=False):
                plgpu.copy_smem_to_gmem(source, out.at[row, head, here])
            plgpu.wait_smem_to_gmem(0)


def across(x: Array, like: Array, axis: int = 0) -> Array:
    """Returns numbers of rows, or of columns with `axis` 1, for each entry of a matrix."""
    return jax.lax.broadcast_in_dim(x, like.shape, [axis])
