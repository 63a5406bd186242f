"""Scatters rows into a sequence on a GPU, in the order of the index, without atomics.

A program writes a few rows of the result and adds all updates of those rows, which are adjacent in
an ascending index and found by bisection. So every row is read and written once, and the result is
deterministic.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from ..gather_tokens.gpu import tile

TILE = 4096  # numbers of a program: 32 float32 a thread at 4 warps, and as many being loaded


def scatter(
    y: Float[Array, "B T D"] | None,
    index: Int[Array, "B C"],
    update: Float[Array, "B C D"],
    gate: Float[Array, "B C"] | None,
    *,
    length: int,
    is_sorted: bool,
    interpret: bool = False,
) -> Float[Array, "B T D"]:
    """Returns `y`, or zeros of `length` rows, with `gate * update` added at `index` in float32."""
    batch, _, width = update.shape
    _check(*(array for array in (y, update, gate) if array is not None))
    order = None if is_sorted else jnp.argsort(index, axis=1, stable=True).astype(jnp.int32)
    if order is not None:
        index = jnp.take_along_axis(index, order, axis=1)
    given = {"y": y, "index": index, "order": order, "update": update, "gate": gate}
    given = {name: array for name, array in given.items() if array is not None}
    rows, lanes = tile(length, width, TILE)

    def kernel(*refs):
        _scatter_kernel(dict(zip(given, refs, strict=False)), refs[-1], rows=rows, lanes=lanes)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((batch, length, width), (update if y is None else y).dtype),
        grid=(pl.cdiv(length, rows), pl.cdiv(width, lanes), batch),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="scatter_tokens",
    )(*given.values())


def _check(*arrays: Array) -> None:
    for dtype in (array.dtype for array in arrays):
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 4:
            raise NotImplementedError(f"adds real numbers of at most 32 bits, got {dtype}")


def _scatter_kernel(given, out_ref, *, rows, lanes):
    (_, length, width), count = out_ref.shape, given["index"].shape[1]
    batch = pl.program_id(2)
    t = pl.program_id(0) * rows + jnp.arange(rows, dtype=jnp.int32)
    d = (pl.program_id(1) * lanes + jnp.arange(lanes, dtype=jnp.int32))[None]
    within, whole = d < width, (batch, t[:, None], d)
    mask = (t < length)[:, None] & within

    def load(name, c, ok, other):
        return plgpu.load(given[name].at[batch, c], mask=ok, other=other)

    # Loaded first, so that the load overlaps with the bisection.
    total = jnp.zeros((rows, lanes), jnp.float32)
    if "y" in given:
        total = plgpu.load(given["y"].at[whole], mask=mask, other=0.0).astype(jnp.float32)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) // 2
        before = (low < high) & (load("index", middle, low < high, 0) < t)
        return jnp.where(before, middle + 1, low), jnp.where(before, high, middle)

    ends = jnp.zeros(rows, jnp.int32), jnp.full(rows, count, jnp.int32)
    first, _ = jax.lax.fori_loop(0, count.bit_length(), halve, ends)
    comes = lambda c: load("index", c, c < count, -1) == t

    def add(state):
        c, here, total = state
        ok = here == 1
        source = load("order", c, ok, 0) if "order" in given else c
        update = plgpu.load(
            given["update"].at[batch, source[:, None], d], mask=ok[:, None] & within, other=0.0
        ).astype(jnp.float32)
        if "gate" in given:
            update *= load("gate", source, ok, 0.0).astype(jnp.float32)[:, None]
        c += 1
        return c, (comes(c) & ok).astype(jnp.int32), total + update

    state = first, comes(first).astype(jnp.int32), total
    *_, total = jax.lax.while_loop(lambda state: jnp.max(state[1]) > 0, add, state)
    plgpu.store(out_ref.at[whole], total.astype(out_ref.dtype), mask=mask)


def collect(
    cotangent: Float[Array, "B T D"],
    index: Int[Array, "B C"],
    update: Float[Array, "B C D"],
    gate: Float[Array, "B C"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B C D"], Float[Array, "B C"]]:
    """Returns the gradients of `update`, in its dtype, and of `gate`, in float32."""
    batch, count, width = update.shape
    _check(cotangent, update, gate)
    rows, lanes = tile(count, width, TILE)
    return pl.pallas_call(
        lambda *refs: _collect_kernel(*refs, rows=rows, lanes=lanes),
        out_shape=(
            jax.ShapeDtypeStruct(update.shape, update.dtype),
            jax.ShapeDtypeStruct((batch, count), jnp.float32),
        ),
        grid=(pl.cdiv(count, rows), batch),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="scatter_tokens_collect",
    )(cotangent, index, update, gate)


def _collect_kernel(
    cotangent_ref, index_ref, update_ref, gate_ref, to_update_ref, to_gate_ref, *, rows, lanes
):
    _, count, width = update_ref.shape
    batch = pl.program_id(1)
    c = pl.program_id(0) * rows + jnp.arange(rows, dtype=jnp.int32)
    ok = c < count
    place = plgpu.load(index_ref.at[batch, c], mask=ok, other=0)[:, None]
    gate = plgpu.load(gate_ref.at[batch, c], mask=ok, other=0.0).astype(jnp.float32)[:, None]

    def columns(i, total):
        d = (i * lanes + jnp.arange(lanes, dtype=jnp.int32))[None]
        mask, here = ok[:, None] & (d < width), (batch, c[:, None], d)
        row = plgpu.load(cotangent_ref.at[batch, place, d], mask=mask, other=0.0)
        update = plgpu.load(update_ref.at[here], mask=mask, other=0.0).astype(jnp.float32)
        row = row.astype(jnp.float32)
        to_update = (gate * row).astype(to_update_ref.dtype)
        plgpu.store(to_update_ref.at[here], to_update, mask=mask)
        return total + jnp.sum(row * update, axis=1)

    total = jax.lax.fori_loop(0, pl.cdiv(width, lanes), columns, jnp.zeros(rows, jnp.float32))
    plgpu.store(to_gate_ref.at[batch, c], total, mask=ok)
