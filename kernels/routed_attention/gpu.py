"""Flash attention on an NVIDIA Hopper GPU (Dao, 2023, arXiv:2307.08691), by Mosaic GPU.

A program keeps one block of queries, or of keys, 64 of them for each warpgroup that multiplies, and
one more warpgroup loads the blocks that are not masked for them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from ..hopper import LANES, WGMMA, load
from .gpu_grid import COLUMNS, ROWS, UNSEEN, Config, Kernel, across
from .where import Where

LOG2E = math.log2(math.e)  # exponents are of two, which the GPU has an instruction for


def forward_config(query: Array, *_: Any, **__: Any) -> Config:
    """Returns the sizes of `forward`, whose blocks fit the 227 KiB of shared memory."""
    return Config(inner=64 if query.shape[3] > 128 else 128)


def backward_config(query: Array, *_: Any, **__: Any) -> Config:
    """Returns the sizes of `backward`, whose scores and sums fit the registers."""
    return Config(warpgroups=1 if query.shape[3] > 128 else 2, inner=64)


def forward(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    where: Where,
    relative: Float[Array, "B T N R"] | None = None,
    *,
    scale: float,
    config: Config | None = None,
    interpret: Any = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Returns the results of `reference.forward`."""
    _check(query, relative)
    kernel = Kernel(
        config or forward_config(query), interpret, scale, (query.shape[1], key.shape[1])
    )
    (batch, length, heads, _), size = query.shape, kernel.config.warpgroups * LANES
    q, k, v = (_wide(x) for x in (query, key, value))
    sums = jax.ShapeDtypeStruct((batch, heads, -(-length // size) * size), jnp.float32)
    out, lse = kernel.call(
        _forward_body, where, (q,), (k, v), outs=(q, sums), name="routed_attention"
    )
    return out[:, :length, :, : query.shape[3]], lse[..., :length]


def backward(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    where: Where,
    relative: Float[Array, "B T N R"] | None,
    out: Float[Array, "B T N H"],
    logsum: Float[Array, "B N T"],
    grad: Float[Array, "B T N H"],
    *,
    scale: float,
    config: Config | None = None,
    interpret: Any = None,
) -> tuple[Array, Array, Array, None]:
    """Returns the results of `reference.backward`."""
    _check(query, relative)
    width = query.shape[3]
    kernel = Kernel(
        config or backward_config(query), interpret, scale, (query.shape[1], key.shape[1])
    )
    delta = jnp.einsum("btnh,btnh->bnt", out, grad, preferred_element_type=jnp.float32)
    q, k, v, do = (_wide(x) for x in (query, key, value, grad))
    rows = logsum * LOG2E, delta
    dq, *_ = kernel.call(
        _query_body, where, (q, do), (k, v), rows, outs=(q,),
        name="routed_attention_query",
    )  # fmt: skip
    by_key = functools.partial(
        kernel.call, where=where, kept=(k, v), passing=(q, do), rows=rows, by_key=True,
        name="routed_attention_key",
    )  # fmt: skip
    if width <= 128:
        dk, dv = by_key(functools.partial(_key_body, wanted=(0, 1)), outs=(k, v))
    else:  # the sums of both would take all registers
        (dk,), (dv,) = (
            by_key(functools.partial(_key_body, wanted=(i,)), outs=(k,)) for i in (0, 1)
        )
    cut = lambda x, like: x[:, : like.shape[1], :, :width]
    return cut(dq, query), cut(dk, key), cut(dv, value), None


def _check(query: Array, relative: Array | None) -> None:
    if relative is not None:
        raise NotImplementedError("it adds no relative scores")
    if query.dtype != jnp.bfloat16:
        raise NotImplementedError(f"tensor cores multiply bfloat16, not {query.dtype}")
    if query.shape[3] > 256:
        raise NotImplementedError(f"it takes heads of at most 256, not {query.shape[3]}")


def _wide(x: Array) -> Array:
    """Returns tokens and heads padded by zeros to whole parts of tiles."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % 8), (0, 0), (0, -x.shape[3] % LANES)])


def _product(x: Any, y: Any) -> Array:
    """Returns x @ y in float32."""

    def run(acc):
        plgpu.wgmma(acc, x, y)
        return acc[...]

    return pl.run_scoped(run, plgpu.WGMMAAccumulatorRef((x.shape[0], y.shape[1])))


def _scores(x: Any, y: Any) -> Array:
    return _product(x, y.transpose((1, 0)))


def _summed(shapes: list[tuple[int, int]], run: Callable[..., None]) -> list[Array]:
    """Returns sums, to which `run` adds products."""

    def scope(*sums):
        run(*sums)
        return [acc[...] for acc in sums]

    return pl.run_scoped(scope, *(plgpu.WGMMAAccumulatorRef(shape) for shape in shapes))


def _filled(x: float, *shape: int) -> Array:
    return plgpu.layout_cast(jnp.full(shape, x, jnp.float32), WGMMA if len(shape) == 2 else ROWS)


def _keep(ref: Any, x: Array) -> None:
    """Writes scores to be read by a product."""
    ref[...] = x.astype(ref.dtype)
    plgpu.commit_smem()


def _forward_body(scale, through, mine, theirs, _, weights) -> list[Array]:
    (q,), (k, v) = mine, theirs
    # A product as wide as the widest sums would take all registers.
    piece = LANES if q.shape[1] % 128 else 128
    pieces = [pl.ds(start, piece) for start in range(0, q.shape[1], piece)]

    def meet(slot, hide, carry):
        m, l, *acc = carry
        scores = hide(_scores(q, k.at[slot]) * (scale * LOG2E), slot)
        higher = jnp.maximum(m, scores.max(axis=1))
        fade, p = jnp.exp2(m - higher), jnp.exp2(scores - across(higher, scores))
        _keep(weights, p)
        for i, piece in enumerate(pieces):
            more = _product(weights, v.at[slot, :, piece])
            acc[i] = acc[i] * across(fade, more) + more
        return higher, l * fade + p.sum(axis=1), *acc

    acc = [_filled(0, LANES, piece) for _ in pieces]
    m, l, *acc = through(meet, (_filled(UNSEEN, LANES), _filled(0, LANES), *acc))
    total = jnp.where(m > UNSEEN, l, 1.0)  # without a key, every key of its blocks was counted
    lse = jnp.where(m > UNSEEN, m * (1 / LOG2E) + jnp.log(total), jnp.inf)
    for at, x in zip(pieces, acc, strict=True):
        q[:, at] = jnp.where(across(m, x) > UNSEEN, x / across(total, x), 0.0).astype(q.dtype)
    return [lse]


def _query_body(scale, through, mine, theirs, rows, weights) -> list[Array]:
    (q, do), (k, v) = mine, theirs
    lse, delta = (load(row, ROWS) for row in rows)

    def run(dq):
        def meet(slot, hide, carry):
            scores = hide(_scores(q, k.at[slot]) * (scale * LOG2E), slot)
            p = jnp.exp2(scores - across(lse, scores))
            _keep(weights, p * (_scores(do, v.at[slot]) - across(delta, scores)))
            plgpu.wgmma(dq, weights, k.at[slot])
            plgpu.wgmma_wait(0)
            return carry

        through(meet, ())

    (dq,) = _summed([q.shape], run)
    q[...] = (dq * scale).astype(q.dtype)
    return []


def _key_body(scale, through, mine, theirs, rows, weights, *, wanted) -> list[Array]:
    (k, v), (q, do) = mine, theirs

    def run(*sums):
        to = dict(zip(wanted, sums, strict=True))

        def meet(slot, hide, carry):
            # Keys are the rows here: weights need no transpose between the products.
            lse, delta = (load(row.at[slot], COLUMNS) for row in rows)
            scores = hide(_scores(k, q.at[slot]) * (scale * LOG2E), slot)
            p = jnp.exp2(scores - across(lse, scores, 1))
            if 1 in to:
                _keep(weights, p)
                plgpu.wgmma(to[1], weights, do.at[slot])
                plgpu.wgmma_wait(0)
            if 0 in to:
                _keep(weights, p * (_scores(v, do.at[slot]) - across(delta, scores, 1)))
                plgpu.wgmma(to[0], weights, q.at[slot])
                plgpu.wgmma_wait(0)
            return carry

        through(meet, ())

    made = _summed([k.shape] * len(wanted), run)
    for i, x, into in zip(wanted, made, mine, strict=False):
        into[...] = (x * scale if i == 0 else x).astype(into.dtype)
    return []
