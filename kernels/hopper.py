"""What kernels for NVIDIA Hopper GPUs share: Pallas's Mosaic GPU backend, TMA and wgmma.

One warpgroup of a program loads tiles ahead by TMA; the others multiply them on tensor cores.
"""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

LANES = 64  # bfloat16 in 128 bytes: a row of the tiles that tensor cores read
SWIZZLE = plgpu.SwizzleTransform(128)
TILED = plgpu.TilingTransform((8, LANES)), SWIZZLE
WGMMA = plgpu.Layout.WGMMA
_TAKES_INDEX = "idx" in inspect.signature(plgpu.load).parameters  # before jax 0.11


def tiles(*shape: int) -> Any:
    """Returns shared memory for tiles as tensor cores read them."""
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=TILED)


def load(ref: Any, layout: Any = WGMMA) -> Any:
    """Reads shared memory to registers in the layout of a product, or of its rows or columns."""
    at = ((),) if _TAKES_INDEX else ()
    return plgpu.load(ref, *at, layout=layout, optimized=False)


def load_ahead(steps: Any, fill: Callable[..., None], read: Any) -> None:
    """Calls `fill(step, slot)` for each step, once the slot's last step is `read`."""

    @pl.loop(0, steps)
    def _(step):
        slot = jax.lax.rem(step, read.shape[0])
        pl.when(step >= read.shape[0])(lambda: plgpu.barrier_wait(read.at[slot]))
        fill(step, slot)


def run(
    body: Callable[..., None],
    given: Any,
    outs: list[jax.ShapeDtypeStruct],
    memory: dict[str, Any],
    *,
    grid: dict[str, int],
    warpgroups: int,
    name: str,
    interpret: Any,
    is_approximate: bool = False,
) -> list[Any]:
    """Runs `body(given, results, memory)` on references, once for each place of a grid.

    The memory has the names of its types. With `is_approximate`, exponents and quotients are.
    """
    arrays, tree = jax.tree.flatten(given)

    def program(*refs: Any, **memory: Any) -> None:
        given, outs = jax.tree.unflatten(tree, refs[: len(arrays)]), refs[len(arrays) :]
        body(given, outs, SimpleNamespace(**memory))

    return plgpu.kernel(
        program,
        out_type=outs,
        scratch_types=memory,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=warpgroups,
        thread_name="warpgroup",
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(approx_math=is_approximate),
        interpret=interpret,
    )(*arrays)
