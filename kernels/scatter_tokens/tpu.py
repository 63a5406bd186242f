"""Scatters rows into a sequence on a TPU: a slab of columns is summed in float32, written once.

The result is a new array: in training the gradient still needs the old one, and adding in place
would first copy it.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from ..gather_tokens.tpu import (
    LANES,
    block,
    by_parts,
    each_row,
    indices,
    padded,
    params,
    pick,
    plan,
    rows_left,
    slab,
    to_words,
    whole_tiles,
    word_rows,
)


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
    del is_sorted  # any order is as good
    batch, count, width = update.shape
    out = jax.ShapeDtypeStruct((batch, length, width), (update if y is None else y).dtype)
    for dtype in (out.dtype, update.dtype):
        if dtype not in (jnp.float32, jnp.bfloat16):
            raise NotImplementedError(f"adds float32 and bfloat16, got {dtype}")
    slab_bytes = 2 * out.dtype.itemsize * (1 if y is None else 2) + 4
    cut = plan(length, count, width, slab_bytes, 2 * update.dtype.itemsize + 8)
    # Padding indices add to a row that is dropped.
    given = {"index": (padded(index, cut, length), indices(cut)), "update": (update, block(cut))}
    if y is not None:
        given["y"] = (y, slab(length, cut))
    if gate is not None:
        given["gate"] = (padded(gate.astype(jnp.float32), cut, 0), _row(cut))
    arrays, specs = zip(*given.values(), strict=True)

    def kernel(*refs):
        named = dict(zip(given, refs, strict=False))
        _scatter_kernel(named, *refs[len(given) :], valid=rows_left(count, cut))

    return pl.pallas_call(
        kernel,
        out_shape=out,
        grid=(batch, cut.slabs, cut.steps),
        in_specs=specs,
        out_specs=slab(length, cut),
        scratch_shapes=[
            pltpu.VMEM((length + 1, cut.lanes), jnp.float32),
            pltpu.VMEM((cut.count, cut.lanes), jnp.float32),
        ],
        compiler_params=params(cut),
        interpret=interpret,
        name="scatter_tokens",
    )(*arrays)


def _row(cut) -> pl.BlockSpec:
    return pl.BlockSpec((None, 1, cut.count), lambda b, d, c: (b, 0, c))


def _column(row):
    """Returns [1 C] as [C 1]."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def _scatter_kernel(given, out_ref, total_ref, rows_ref, *, valid):
    length, lanes = out_ref.shape
    step, last = pl.program_id(2), pl.num_programs(2) - 1

    def start(at, size):
        here = (pl.ds(at, size), slice(None))
        zeros = jnp.zeros((size, lanes), jnp.float32)
        total_ref[here] = given["y"][here].astype(jnp.float32) if "y" in given else zeros

    def finish(at, size):
        here = (pl.ds(at, size), slice(None))
        out_ref[here] = total_ref[here].astype(out_ref.dtype)

    pl.when(step == 0)(lambda: by_parts(length, start))
    rows = given["update"][...].astype(jnp.float32)
    rows_ref[...] = _column(given["gate"][...]) * rows if "gate" in given else rows

    def add(c):
        total_ref[pl.ds(given["index"][0, c], 1), :] += rows_ref[pl.ds(c, 1), :]

    each_row(valid, add)
    pl.when(step == last)(lambda: by_parts(length, finish))


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
    cotangent, held = whole_tiles(cotangent), 3 * cotangent.dtype.itemsize
    length = cotangent.shape[1]
    # Of a step: two blocks each way, the gathered words, and three blocks in float32.
    cut = plan(length, count, width, held, 4 * update.dtype.itemsize + 16)
    to_update, to_gate = pl.pallas_call(
        lambda *refs: _collect_kernel(*refs, width=width, valid=rows_left(count, cut)),
        out_shape=(
            jax.ShapeDtypeStruct(update.shape, update.dtype),
            jax.ShapeDtypeStruct((batch, 1, cut.count * cut.steps), jnp.float32),
        ),
        grid=(batch, cut.slabs, cut.steps),
        in_specs=[indices(cut), slab(length, cut), block(cut), _row(cut)],
        # The sums of a sequence stay in memory while each of its slabs adds its columns.
        out_specs=(
            block(cut),
            pl.BlockSpec((None, 1, cut.count * cut.steps), lambda b, d, c: (b, 0, 0)),
        ),
        scratch_shapes=[
            pltpu.VMEM((word_rows(length, cotangent.dtype), cut.lanes), jnp.int32),
            pltpu.VMEM((word_rows(cut.count, cotangent.dtype), cut.lanes), jnp.int32),
        ],
        compiler_params=params(cut, "arbitrary"),
        interpret=interpret,
        name="scatter_tokens_collect",
    )(padded(index, cut, 0), cotangent, update, padded(gate.astype(jnp.float32), cut, 0))
    return to_update, to_gate[:, 0, :count]


def _collect_kernel(index_ref, cotangent_ref, update_ref, gate_ref, *outs, width, valid):
    to_update_ref, to_gate_ref, words_ref, picked_ref = outs
    slab_, step = pl.program_id(1), pl.program_id(2)
    count, lanes = to_update_ref.shape

    @pl.when(step == 0)
    def _():
        to_words(cotangent_ref, words_ref)

    pick(index_ref, words_ref, picked_ref, valid, cotangent_ref.dtype)
    picked = pltpu.bitcast(picked_ref[...], cotangent_ref.dtype).astype(jnp.float32)
    to_update_ref[...] = (_column(gate_ref[...]) * picked).astype(to_update_ref.dtype)

    products = picked * update_ref[...].astype(jnp.float32)
    if width % lanes:  # columns past the last hold anything
        column = jax.lax.broadcasted_iota(jnp.int32, products.shape, 1) + slab_ * lanes
        products = jnp.where(column < width, products, 0.0)
    sums = jnp.broadcast_to(jnp.sum(products, axis=1, keepdims=True), (count, LANES)).T[:1]
    here = (slice(None), pl.ds(pl.multiple_of(step * count, LANES), count))

    @pl.when(slab_ == 0)
    def _():
        to_gate_ref[here] = sums

    @pl.when(slab_ > 0)
    def _():
        to_gate_ref[here] += sums
