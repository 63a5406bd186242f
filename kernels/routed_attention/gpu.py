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
from .gpu_grid import COLUMNS, ROWS, Config, Kernel, across
from .where import UNSEEN, Inputs, Results, Scoring, decline

LOG2E = math.log2(math.e)  # exponents are of two, which the GPU has an instruction for


def forward_config(given: Inputs, *, scoring: Scoring) -> Config:
    """Returns the sizes of `forward`, whose blocks fit the 227 KiB of shared memory."""
    _check(given, scoring)
    return Config(inner=64 if given.query.shape[3] > 128 else 128)


def backward_config(given: Inputs, *_: Any, scoring: Scoring) -> Config:
    """Returns the sizes of `backward`, whose scores and sums fit the registers."""
    _check(given, scoring)
    return Config(warpgroups=1 if given.query.shape[3] > 128 else 2, inner=64)


def forward(given: Inputs, *, scoring: Scoring, config: Config, interpret: Any = None) -> Results:
    """Returns the results of `reference.forward`."""
    (batch, length, heads, width), size = given.query.shape, config.warpgroups * LANES
    q, k, v = (_wide(x) for x in given[:3])
    kernel = Kernel(config, interpret, given.where, (length, given.key.shape[1]))
    sums = jax.ShapeDtypeStruct((batch, heads, -(-length // size) * size), jnp.float32)
    body = functools.partial(_forward_body, scoring.scale)
    out, lse = kernel.call(body, [q], [k, v], outs=[q, sums], name="routed_attention")
    return Results(out[:, :length, :, :width], lse[..., :length])


def backward(
    given: Inputs,
    made: Results,
    grad: Float[Array, "B T N H"],
    *,
    scoring: Scoring,
    config: Config,
    interpret: Any = None,
) -> tuple[Array, Array, Array, None]:
    """Returns the results of `reference.backward`."""
    query, key, value, where, _ = given
    kernel = Kernel(config, interpret, where, (query.shape[1], key.shape[1]))
    delta = jnp.einsum("btnh,btnh->bnt", made.out, grad, preferred_element_type=jnp.float32)
    q, k, v, do = (_wide(x) for x in (query, key, value, grad))
    rows = made.lse * LOG2E, delta
    body = functools.partial(_query_body, scoring.scale)
    dq, *_ = kernel.call(body, [q, do], [k, v], rows, outs=[q], name="routed_attention_query")

    def by_key(*wanted: int) -> list[Array]:
        body = functools.partial(_key_body, scoring.scale, wanted=wanted)
        return kernel.call(
            body, [k, v], [q, do], rows, outs=[k] * len(wanted), by_key=True,
            name="routed_attention_key",
        )  # fmt: skip

    # Of wide heads, the sums of both would take all registers.
    dk, dv = by_key(0, 1) if query.shape[3] <= 128 else (*by_key(0), *by_key(1))
    cut = lambda x, like: x[:, : like.shape[1], :, : like.shape[3]]
    return cut(dq, query), cut(dk, key), cut(dv, value), None


def _check(given: Inputs, scoring: Scoring) -> None:
    decline(given, scoring, (jnp.bfloat16,), 256)  # tensor cores multiply no float32
    if scoring.window:
        raise NotImplementedError("it has no window")


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


def _forward_body(scale, passing, weights) -> list[Array]:
    (q,), (k, v) = passing.mine.tokens, passing.theirs.tokens
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
    m, l, *acc = passing.through(meet, (_filled(UNSEEN, LANES), _filled(0, LANES), *acc))
    total = jnp.where(m > UNSEEN, l, 1.0)  # without a key, every key of its blocks was counted
    lse = jnp.where(m > UNSEEN, m * (1 / LOG2E) + jnp.log(total), jnp.inf)
    for at, x in zip(pieces, acc, strict=True):
        q[:, at] = jnp.where(across(m, x) > UNSEEN, x / across(total, x), 0.0).astype(q.dtype)
    return [lse]


def _query_body(scale, passing, weights) -> list[Array]:
    (q, do), (k, v) = passing.mine.tokens, passing.theirs.tokens
    lse, delta = (load(row, ROWS) for row in passing.mine.numbers)

    def run(dq):
        def meet(slot, hide, carry):
            scores = hide(_scores(q, k.at[slot]) * (scale * LOG2E), slot)
            p = jnp.exp2(scores - across(lse, scores))
            _keep(weights, p * (_scores(do, v.at[slot]) - across(delta, scores)))
            plgpu.wgmma(dq, weights, k.at[slot])
            plgpu.wgmma_wait(0)
            return carry

        passing.through(meet, ())

    (dq,) = _summed([q.shape], run)
    q[...] = (dq * scale).astype(q.dtype)
    return []


def _key_body(scale, passing, weights, *, wanted) -> list[Array]:
    (k, v), (q, do) = passing.mine.tokens, passing.theirs.tokens

    def run(*sums):
        to = dict(zip(wanted, sums, strict=True))

        def meet(slot, hide, carry):
            # Keys are the rows here: weights need no transpose between the products.
            lse, delta = (load(row.at[slot], COLUMNS) for row in passing.theirs.numbers)
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

        passing.through(meet, ())

    made = _summed([k.shape] * len(wanted), run)
    for i, x, into in zip(wanted, made, passing.mine.tokens, strict=False):
        into[...] = (x * scale if i == 0 else x).astype(into.dtype)
    return []
