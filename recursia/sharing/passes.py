"""Steps that read the keys of later steps: run several times, each pass on the keys of the last.

A token reads the keys that a later step makes of earlier tokens. Token by token, as in decoding,
they are there. For all tokens at once the steps are run again and again (Jacobi iteration; Wu & Tu
2024, arXiv 2405.10637): every pass starts from the same states and reads the later steps' keys that
the pass before it left, the first those that are zero. After pass p the results of p tokens are
those of decoding.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recursia.injection import Injection
from recursia.layers.attention import Context, KeysValues
from recursia.layers.branch import Report
from recursia.sharing import step_scan
from recursia.sharing.steps import CachedKeys, Span, Steps, joined

Once = Callable[[KeysValues], tuple[Array, tuple[CachedKeys, ...], Report]]


def walk(
    steps: Steps, x: Float[Array, "B T D"], context: Context, is_exact: bool
) -> tuple[Float[Array, "B T D"], Report]:
    """Applies every step, those of a cycle in several passes; see `Stack.walk`."""
    plan, views = steps.schedule, steps.views()
    has_boundaries = steps.norm is not None or steps.injection != Injection()
    cached: tuple[CachedKeys, ...] = ()
    reports = []
    for start, stop, is_cycle in plan.segments:
        own = {slot: view[start:stop] for slot, view in views.items()}
        span = Span(start, stop, own, (start,))
        once = functools.partial(
            step_scan.apply, steps, context=context, span=span, has_boundaries=has_boundaries
        )
        if is_cycle:
            x, made, report = _cycle(steps, x, context, span, cached, once, is_exact)
        else:
            x, made, report = once(x, cached=cached)
        cached += made
        reports.append(report)
    join = lambda *leaves: leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)
    return x, jax.tree.map(join, *reports)


def _cycle(
    steps: Steps,
    x: Array,
    context: Context,
    span: Span,
    cached: tuple[CachedKeys, ...],
    apply: Callable[..., tuple[Array, tuple[CachedKeys, ...], Report]],
    is_exact: bool,
) -> tuple[Array, tuple[CachedKeys, ...], Report]:
    """Returns what the last pass returns; only it and a few before it have a gradient."""
    plan = steps.schedule
    read = plan.read_places[span.start : span.stop]
    before = tuple(sorted({int(place) for place in read if place < 0}))
    owners = tuple(place + plan.num_steps for place in before)

    def once(keys: KeysValues) -> tuple[Array, tuple[CachedKeys, ...], Report]:
        return apply(x, cached=(*cached, CachedKeys(keys, context, before)))

    def again(keys: KeysValues) -> KeysValues:
        found = joined(once(keys)[1], owners)[0]
        assert isinstance(found, KeysValues)  # no step replays a later one
        return found

    keys = _zeros(steps, x, context, span, owners)
    if is_exact:
        return once(settled(again, keys, x.shape[1] - 1))
    free, trained = plan.passes
    # Nothing that passes without a gradient close over may have one.
    alone, closed_over = jax.closure_convert(again, keys)
    closed_over = jax.lax.stop_gradient(closed_over)
    keys = jax.lax.fori_loop(0, free, lambda _, keys: alone(keys, *closed_over), keys)
    keys = jax.lax.fori_loop(0, trained - 1, lambda _, keys: again(keys), keys)
    return once(keys)


def _zeros(
    steps: Steps, x: Array, context: Context, span: Span, owners: tuple[int, ...]
) -> KeysValues:
    """Returns keys and values of some steps that are zero, stacked."""
    index = owners[0] - span.start
    entries = {slot: view[index : index + 1].entry() for slot, view in span.views.items()}
    make = lambda x: steps.block.apply(steps.bind(entries, owners[0]), x, context)[1]
    each = jax.eval_shape(make, x)
    return jax.tree.map(lambda s: jnp.zeros((len(owners), *s.shape), s.dtype), each)


def settled(again: Callable[[Any], Any], start: Any, most: int) -> Any:
    """Returns what does not change any more, or has been changed so many times."""

    def once(loop: tuple[Any, Array, Bool[Array, ""]]) -> tuple[Any, Array, Array]:
        before, count, _ = loop
        after = again(before)
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        changes = jnp.stack([(a != b).any() for a, b in pairs]).any()
        return after, count + 1, changes

    is_open = lambda loop: (loop[1] < most) & loop[2]
    return jax.lax.while_loop(is_open, once, (start, jnp.int32(0), jnp.bool_(True)))[0]
