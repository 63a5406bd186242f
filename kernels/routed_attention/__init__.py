"""Attention of routed tokens, masked by the positions and segments of queries and keys.

Flash attention (Dao, 2023, arXiv:2307.08691) that skips blocks by positions and segments: for the
tokens of one recursion among themselves, or over the keys and values of another.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from ..dispatch import Implementation, Op, on_hopper
from . import libraries, prefix, reference, sizes, tiles, tpu
from .plan import Plan, visits
from .where import Inputs, Results, Scoring, Where


def _products(of_keys: int, of_values: int) -> Callable[..., int]:
    """Returns the FLOPs of products as wide as keys and as wide as values, tile by tile.

    Masked keys of a tile that is not skipped are included.
    """

    def flops(given: Inputs, *_: Any, scoring: Scoring) -> int:
        query, value, length = given.query, given.value, given.query.shape[1]
        met = tiles.pairs(length, value.shape[1], scoring.window, given.where)
        each = of_keys * query.shape[3] + of_values * value.shape[3]
        return 2 * query.shape[0] * query.shape[2] * each * met

    return flops


def _op(suffix: str, run: str, of_gpu: Callable[..., Any], products: tuple[int, int]) -> Op:
    """Returns a direction; libraries, which take plain causal attention, come first."""
    of_reference, of_library, of_tpu = (getattr(x, run) for x in (reference, libraries, tpu))
    return Op(
        f"routed_attention{suffix}",
        of_reference,
        (
            Implementation("one_by_one", "cpu", functools.partial(of_reference, each=jax.lax.map)),
            Implementation("splash", "tpu", functools.partial(of_library, libraries.splash)),
            Implementation("cudnn", "cuda", functools.partial(of_library, libraries.cudnn)),
            Implementation("pallas_tpu", "tpu", of_tpu, sizes.of_tpu),
            on_hopper(__name__, run, of_gpu),
        ),
        _products(*products),
        sizes.sized_by,
    )


# Forward and backward implementations can be mixed.
FORWARD = _op("", "forward", sizes.of_gpu_forward, (1, 1))
BACKWARD = _op("_backward", "backward", sizes.of_gpu_backward, (3, 2))
PLANNED = {  # kernels of ours, by the op whose sizes of blocks they have
    "tpu": (FORWARD, "pallas_tpu"),
    "gpu_forward": (FORWARD, "mosaic_gpu"),
    "gpu_query": (BACKWARD, "mosaic_gpu"),
    "gpu_key": (BACKWARD, "mosaic_gpu"),
}


def routed_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K W"],
    *,
    query_positions: Int[Array, "B T"] | None = None,
    key_positions: Int[Array, "B S"] | None = None,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    plan: Plan | None = None,
    relative: Float[Array, "B T N R"] | None = None,
    prefix_key: Float[Array, "B P K H"] | None = None,
    prefix_value: Float[Array, "B P K W"] | None = None,
    scale: float | None = None,
    window: int = 0,
    cap: float = 0.0,
    backend: str = "auto",
) -> Float[Array, "B T N W"]:
    """Causal grouped-query attention: a query sees keys of its segment that are not after it.

    A query that sees no key returns zeros. Probabilities are not kept: the backward pass recomputes
    them. Kernels skip blocks that positions and segments mask, so the time is proportional to the
    unmasked part if both are nearly sorted; the result needs no order. If positions are None, and
    keys are in the segments of the queries, causal kernels of libraries may run.

    Args:
      query: N heads; head n reads key head n // (N / K).
      key: K heads; K divides N.
      value: one for each key, of any width; kernels take those as wide as keys alone.
      query_positions: positions of the queries, in tokens; None is 0, 1, 2, ...
      key_positions: positions of the keys; None is 0, 1, 2, ...
      query_segments: segment ids of the queries; None is 0 for all.
      key_segments: segment ids of the keys; None is those of the queries.
      plan: what `attention_plan` returned for these positions and segments; None lists the blocks
        in each call.
      relative: position bias that each query adds to the scores of keys 0, 1, ... positions before
        it; keys further away take the last.
      prefix_key: keys that every query sees, whatever its position and segment, the window and
        `relative`; None has none. They are a call of their own, joined with that of `key`.
      prefix_value: one for each.
      scale: factor of the scores; None is 1 / sqrt(H).
      window: number of positions up to its own that a query sees; 0 is no bound.
      cap: soft cap of the scores, cap * tanh(score / cap); 0 has none.
      backend: "auto", "reference" or the name of a kernel.

    Raises:
      ValueError: for shapes that do not match, or an unknown backend.
    """
    where = Where(query_positions, key_positions, query_segments, key_segments, plan)
    given = Inputs(query, key, value, where, relative)
    _check(given)
    before = None
    if prefix_key is not None and prefix_value is not None:
        before = prefix.inputs(query, prefix_key, prefix_value)
        _check(before)
    scale = 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else float(scale)
    if not (query.size and key.size):
        return jnp.zeros((*query.shape[:3], value.shape[3]), query.dtype)
    return _attend(given, before, Scoring(scale, window, float(cap)), backend)


def attention_plan(query: jax.ShapeDtypeStruct, key: jax.ShapeDtypeStruct, where: Where) -> Plan:
    """Returns which blocks kernels visit, forward and backward, for many calls to share.

    Make it outside of a loop over layers: XLA moves it out of none. Sizes of blocks are those of
    this process's device, or computed. Each platform reads that of its own kernels, and XLA leaves
    out the rest. A kernel that declines the shapes has none.

    Args:
      query: shape and dtype of the queries [B T N H]; of N, the ratio to K alone matters.
      key: shape of the keys [B S K H].
      where: positions and segments.
    """
    device, given = jax.devices()[0].device_kind, Inputs(query, key, key, where)  # pyright: ignore
    plan: Plan = {}
    for kernel, (op, backend) in PLANNED.items():
        (ours,) = (each for each in op.implementations if each.name == backend)
        with contextlib.suppress(NotImplementedError):
            config = ours.sizes(op, (given,), {"scoring": Scoring(1.0)}, device)
            plan[kernel] = visits(kernel, given, config)
    return plan


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend(given: Inputs, before: Inputs | None, scoring: Scoring, backend: str) -> Array:
    return _made(given, before, scoring, backend).out


def _made(given: Inputs, before: Inputs | None, scoring: Scoring, backend: str) -> Results:
    made = FORWARD(given, scoring=scoring, backend=backend)
    if before is None:
        return made
    return prefix.joined(made, FORWARD(before, scoring=prefix.scoring(scoring), backend=backend))


def _forward(
    given: Inputs, before: Inputs | None, scoring: Scoring, backend: str
) -> tuple[Array, Any]:
    made = _made(given, before, scoring, backend)
    # A rematerialisation policy can save by this name what the backward pass reads.
    made = Results(*(checkpoint_name(each, "routed_attention") for each in made))
    return made.out, (given, before, made)


def _backward(
    scoring: Scoring, backend: str, saved: Any, grad: Array
) -> tuple[Inputs, Inputs | None]:
    def pull(given: Inputs, scoring: Scoring) -> Inputs:
        dq, dk, dv, further = BACKWARD(given, made, grad, scoring=scoring, backend=backend)
        return Inputs(dq, dk, dv, None, further)  # pyright: ignore[reportArgumentType]

    given, before, made = saved
    # Either call has its part of the gradient by the output and the log-sum-exp of both.
    return pull(given, scoring), before and pull(before, prefix.scoring(scoring))


_attend.defvjp(_forward, _backward)


def _check(given: Inputs) -> None:
    """Raises ValueError for shapes that do not match."""
    query, key, value, where, relative = given
    batch, length, heads, width = query.shape
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"routed_attention: key is {key.shape} but value is {value.shape}.")
    if (key.shape[0], key.shape[3]) != (batch, width):
        raise ValueError(
            f"routed_attention: query has batch {batch} and width {width} but key has "
            f"{key.shape[0]} and {key.shape[3]}."
        )
    if not key.shape[2] or heads % key.shape[2]:
        raise ValueError(
            f"routed_attention: {heads} query heads do not divide among {key.shape[2]} key heads."
        )
    expected = [(batch, length), (batch, key.shape[1])] * 2
    for name, leaf, shape in zip(where._fields, where[:4], expected, strict=False):
        if leaf is not None and leaf.shape != shape:
            raise ValueError(f"routed_attention: {name} is {leaf.shape}; must be {shape}.")
    if where.query_segments is not None and where.key_segments is None and length != key.shape[1]:
        raise ValueError(
            f"routed_attention: {length} queries have segments and {key.shape[1]} keys have none."
        )
    if relative is not None and (relative.shape[:3] != query.shape[:3] or not relative.shape[3]):
        raise ValueError(
            f"routed_attention: relative is {relative.shape} but query is {query.shape}; all but "
            "the last must be equal, and the last at least 1."
        )
