"""Flash attention on an NVIDIA Hopper GPU (Dao, 2023, arXiv:2307.08691), by Mosaic GPU.

A program keeps one block of queries, or of keys, 64 of them for each warpgroup that multiplies, and
one more warpgroup loads the blocks that are not masked for them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from ..hopper import LANES, WGMMA, load
from .gpu_grid import COLUMNS, ROWS, Program, across, call
from .sizes import OfGpu
from .where import UNSEEN, Inputs, Results, Scoring

LOG2E = math.log2(math.e)  # exponents are of two, which the GPU has an instruction for


def forward(given: Inputs, *, scoring: Scoring, config: OfGpu, interpret: Any = None) -> Results:
    """Returns the results of `reference.forward`."""
    (_, length, _, width), (q, k, v) = given.query.shape, map(_wide, given[:3])
    body = functools.partial(_forward_body, scoring.scale)
    out, lse = call(body, "gpu_forward", given, config, [q], [k, v], made=1, interpret=interpret)
    return Results(out[:, :length, :, :width], lse[..., :length])


def backward(
    given: Inputs,
    made: Results,
    grad: Float[Array, "B T N H"],
    *,
    scoring: Scoring,
    config: OfGpu,
    interpret: Any = None,
) -> tuple[Array, Array, Array, None]:
    """Returns the results of `reference.backward`."""
    query, key, value, *_ = given
    delta = jnp.einsum("btnh,btnh->bnt", made.out, grad, preferred_element_type=jnp.float32)
    q, k, v, do = (_wide(x) for x in (query, key, value, grad))

    def towards(kernel: str, *wanted: int) -> list[Array]:
        body = functools.partial(_gradient_body, scoring.scale, wanted=wanted)
        return call(
            body, kernel, given, config, [q, do], [k, v], (made.lse * LOG2E, delta),
            replaced=len(wanted), interpret=interpret,
        )  # fmt: skip

    (dq,) = towards("gpu_query", 0)
    # Of wide heads, the sums of both would take all registers.
    kinds = [(0, 1)] if query.shape[3] <= 128 else [(0,), (1,)]
    dk, dv = (x for kind in kinds for x in towards("gpu_key", *kind))
    cut = lambda x, like: x[:, : like.shape[1], :, : like.shape[3]]
    return cut(dq, query), cut(dk, key), cut(dv, value), None


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


def _forward_body(scale: float, program: Program) -> list[Array]:
    (q,), (k, v) = program.mine.tokens, program.theirs.tokens
    # A product as wide as the widest sums would take all registers.
    piece = LANES if q.shape[1] % 128 else 128
    pieces = [pl.ds(start, piece) for start in range(0, q.shape[1], piece)]

    def meet(slot, hide, carry):
        m, l, *acc = carry
        scores = hide(_scores(q, k.at[slot]) * (scale * LOG2E), slot)
        higher = jnp.maximum(m, scores.max(axis=1))
        fade, p = jnp.exp2(m - higher), jnp.exp2(scores - across(higher, scores))
        _keep(program.weights, p)
        for i, piece in enumerate(pieces):
            more = _product(program.weights, v.at[slot, :, piece])
            acc[i] = acc[i] * across(fade, more) + more
        return higher, l * fade + p.sum(axis=1), *acc

    acc = [_filled(0, LANES, piece) for _ in pieces]
    m, l, *acc = program.through(meet, (_filled(UNSEEN, LANES), _filled(0, LANES), *acc))
    total = jnp.where(m > UNSEEN, l, 1.0)  # without a key, every key of its blocks was counted
    lse = jnp.where(m > UNSEEN, m * (1 / LOG2E) + jnp.log(total), jnp.inf)
    for at, x in zip(pieces, acc, strict=True):
        q[:, at] = jnp.where(across(m, x) > UNSEEN, x / across(total, x), 0.0).astype(q.dtype)
    return [lse]


def _gradient_body(scale: float, program: Program, *, wanted: tuple[int, ...]) -> list[Array]:
    """Sums gradients `wanted`: 0 of what is multiplied to scores, and 1, of keys alone, of values.

    Queries come with the gradients of their outputs, and keys with their values. Where keys are
    kept they are the rows: weights need no transpose between the products.
    """
    (x, y), (their_x, their_y) = program.mine.tokens, program.theirs.tokens
    own, axis = [load(row, ROWS) for row in program.mine.numbers], int(program.by_key)

    def run(*sums):
        to = dict(zip(wanted, sums, strict=True))

        def add(number, p, tokens):
            _keep(program.weights, p)
            plgpu.wgmma(to[number], program.weights, tokens)
            plgpu.wgmma_wait(0)

        def meet(slot, hide, carry):
            lse, delta = own or [load(row.at[slot], COLUMNS) for row in program.theirs.numbers]
            scores = hide(_scores(x, their_x.at[slot]) * (scale * LOG2E), slot)
            p = jnp.exp2(scores - across(lse, scores, axis))
            if 1 in to:
                add(1, p, their_y.at[slot])
            if 0 in to:
                dp = _scores(y, their_y.at[slot])
                add(0, p * (dp - across(delta, scores, axis)), their_x.at[slot])
            return carry

        program.through(meet, ())

    made = _summed([x.shape] * len(wanted), run)
    for number, total, into in zip(wanted, made, program.mine.tokens, strict=False):
        into[...] = (total * scale if number == 0 else total).astype(into.dtype)
    return []
