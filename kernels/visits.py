"""Visits of blocks on a TPU: a list in scalar memory, which the two cores of a chip may divide.

A list is known while the program runs: a step of the grid, of which there are as many as of visits,
reads from it what blocks to load, ahead of time.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Int


class Visit(NamedTuple):
    """A visit of a list, and the first and the end of those of its part.

    Parts are unequal: after the end of one, the core has no more to do.
    """

    number: Array
    begin: Array
    end: Array

    @property
    def last(self) -> Array:
        """Number of the visit, or of the part's last one after its end."""
        return jnp.minimum(self.number, self.end - 1)

    @property
    def is_idle(self) -> Array:
        """Whether the part has ended."""
        return self.number >= self.end


@dataclasses.dataclass(frozen=True)
class Visits:
    """A list of visits, each made once for every place on some axes of the grid.

    Attributes:
      bounds: the first visit of each part of the list, and the end; see `bounds_of`.
      tables: what is known of each visit.
      axes: sizes of the axes of the grid.
    """

    bounds: Int[Array, "bounds"]
    tables: tuple[Array, ...]
    axes: tuple[int, ...]

    def spec(self, shape: tuple[int | None, ...], at: Callable[..., Any]) -> pl.BlockSpec:
        """Returns the spec of blocks that are `at(*places, visit, *tables)`."""

        def index(part: Array, *given: Array) -> Any:
            *places, step = given[: len(self.axes) + 1]
            bounds, *tables = given[len(self.axes) + 1 :]
            return at(*places, _visit(part, step, bounds).last, *tables)

        return pl.BlockSpec(shape, index)

    def call(
        self,
        body: Callable[..., None],
        arrays: Sequence[Array],
        *,
        scratch: Sequence[tuple[int, int]] = (),
        in_specs: Sequence[pl.BlockSpec],
        out_specs: Any,
        vmem_bytes: int | None = None,
        **options: Any,
    ) -> Any:
        """Runs `body(visit, *tables, *blocks, *scratch)` once for each visit and place.

        The scratch is of float32, and kept between visits; options are those of `pallas_call`.
        """
        from jax.experimental.pallas import tpu as pltpu  # slow to import, and seldom needed

        count = len(self.axes)

        def run(bounds: Any, *refs: Any) -> None:
            body(_visit(pl.program_id(0), pl.program_id(count + 1), bounds), *refs)

        return pl.pallas_call(
            run,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1 + len(self.tables),
                grid=(len(self.bounds) - 1, *self.axes, jnp.diff(self.bounds).max()),
                in_specs=in_specs,
                out_specs=out_specs,
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",) * (count + 1) + ("arbitrary",),
                vmem_limit_bytes=vmem_bytes,
            ),
            **options,
        )(self.bounds, *self.tables, *arrays)


def _visit(part: Array, step: Array, bounds: Any) -> Visit:
    return Visit(bounds[part] + step, bounds[part], bounds[part + 1])


def bounds_of(total: Array, owner: Array, is_halved: bool) -> Int[Array, "bounds"]:
    """Returns the first visit of each part of a list, and the end; each core takes parts.

    Args:
      total: number of visits.
      owner: what each visit writes to, which no two parts share.
      is_halved: whether there are two parts; there are two owners at least.
    """
    if not is_halved:
        return jnp.stack([jnp.zeros_like(total), total])
    at = jnp.arange(1, owner.shape[0])
    is_cut = (owner[1:] != owner[:-1]) & (at < total)
    half = at[jnp.where(is_cut, jnp.abs(2 * at - total), 2**31 - 1).argmin()]
    return jnp.stack([jnp.zeros_like(total), half.astype(total.dtype), total])
