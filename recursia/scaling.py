"""Models scaled in depth, width or attention heads until they cost a target.

Every search takes a cost, which is a function of the model, and returns the model that it found
nearest to the target; the caller decides whether that is near enough.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from recursia.architecture import Model
from recursia.blocks.block import Block

TOLERANCE = 0.01  # relative error below which costs count as equal
_ROUND_TOLERANCE = 0.0025  # relative error that a hidden width of a higher power of two may have
_WIDTHS = ("embed_dim", "mlp_dim", "expert_dim", "head_dim")
_HIDDEN_WIDTHS = ("mlp_dim", "expert_dim")
Cost = Callable[[Model], float]


def error(cost: float, target: float) -> float:
    """Returns the relative error of a cost."""
    return abs(cost / target - 1)


def is_equal(cost: float, target: float) -> bool:
    """Returns whether a cost is within `TOLERANCE` of a target."""
    return error(cost, target) <= TOLERANCE


def by_depth(model: Model, cost: Cost, target: float, max_layers: int) -> Model:
    """Returns the model with the number of layers, at most `max_layers`, that costs nearest."""
    if is_equal(cost(model), target):
        return model
    best = model
    for num_layers in range(1, max_layers + 1):
        try:
            deep = dataclasses.replace(model, num_layers=num_layers)
        except ValueError:  # the number of recursions does not divide it
            continue
        best = min(best, deep, key=lambda model: error(cost(model), target))
        if cost(deep) > target:
            break
    return best


def by_width(model: Model, cost: Cost, target: float) -> Model:
    """Returns the model with widths in proportion, and then the hidden width, that cost nearest.

    Each width is a multiple of the largest power of two that divides the model's own and is at most
    a sixteenth of it.
    """
    if is_equal(cost(model), target):
        return model
    widths = {name: width for name in _WIDTHS if (width := width_of(model.block, name))}
    units = {name: max(_unit(width), 1 + (name == "head_dim")) for name, width in widths.items()}
    below = above = None
    embed_dim = 0
    while above is None and embed_dim <= widths["embed_dim"] * max(2, 2 * target / cost(model)):
        embed_dim += units["embed_dim"]
        scale = embed_dim / widths["embed_dim"]
        counts = {name: max(1, round(scale * widths[name] / unit)) for name, unit in units.items()}
        wide = with_widths(model, **{name: count * units[name] for name, count in counts.items()})
        if wide is not None:
            below, above = (below, wide) if cost(wide) > target else (wide, None)
    nearest = sorted(filter(None, (below, above)), key=lambda model: error(cost(model), target))
    tuned = [by_hidden_width(model, cost, target) for model in nearest]
    return min(tuned or [model], key=lambda model: not is_equal(cost(model), target))


def _unit(width: int) -> int:
    """Returns the largest power of two that divides a width and is at most a sixteenth of it."""
    return math.gcd(width, 1 << max(0, (width // 16).bit_length() - 1))


def by_hidden_width(model: Model, cost: Cost, target: float) -> Model:
    """Returns the model with the hidden width that costs nearest.

    Of the widths within `_ROUND_TOLERANCE`, the one with the highest power of two is taken.
    """
    now = cost(model)
    if is_equal(now, target):
        return model
    for name in _HIDDEN_WIDTHS:
        width = width_of(model.block, name)
        wider = with_widths(model, **{name: 2 * width}) if width else None
        if width is None or wider is None or cost(wider) <= now:
            continue
        wanted = width * (1 + (target - now) / (cost(wider) - now))  # the cost is linear in it
        rounded = [max(1, round(wanted / 2**k)) * 2**k for k in reversed(range(8))]
        tuned = [m for width in rounded if (m := with_widths(model, **{name: width})) is not None]
        round_ones = (m for m in tuned if error(cost(m), target) <= _ROUND_TOLERANCE)
        return next(round_ones, min([model, *tuned], key=lambda m: error(cost(m), target)))
    return model


def by_heads(model: Model, cost: Cost, target: float) -> Model:
    """Returns the model with the number of key/value heads and the head width that cost nearest.

    Of models within the tolerance, the one that changes `head_dim` least is taken.
    """
    head_dim = width_of(model.block, "head_dim")
    if not head_dim:
        return model
    changes: list[dict[str, int]] = [{}]
    num_heads = width_of(model.block, "num_heads")
    if num_heads and width_of(model.block, "num_kv_heads"):
        changes = [{"num_kv_heads": k} for k in range(1, num_heads + 1) if num_heads % k == 0]
    candidates = [(model, head_dim)]
    for change in changes:
        if (changed := with_widths(model, **change)) is not None:
            width = 2 * max(1, round(head_dim * target / cost(changed) / 2))  # the cost is linear
            wide = with_widths(changed, head_dim=width)
            candidates.append((changed, head_dim) if wide is None else (wide, width))
    equal = [(model, width) for model, width in candidates if is_equal(cost(model), target)]
    if equal:
        return min(equal, key=lambda pair: abs(math.log(pair[1] / head_dim)))[0]
    return min(candidates, key=lambda pair: error(cost(pair[0]), target))[0]


def with_widths(model: Model, **widths: int) -> Model | None:
    """Returns the model with other widths of its block, or None if the block refuses them.

    Those that blocks outside the core have of their own change in proportion.
    """
    block = model.block
    own = {name: width for name, width in widths.items() if name in block.fields}
    ratio = lambda name: own[name] / (width_of(block, name) or 1) if name in own else 1
    scaled = lambda size, name: max(1, round(size * ratio(name)))
    ends = tuple((name, scaled(size, name)) for name, size in model.end_sizes)
    inner: Any = model.end_feedforward
    if inner is not None:
        by = next((name for name in _HIDDEN_WIDTHS if name in own), "")
        sizes = {name: getattr(inner, name) for name in _HIDDEN_WIDTHS if hasattr(inner, name)}
        inner = dataclasses.replace(inner, **{n: scaled(s, by) for n, s in sizes.items()})
    try:
        made = block.sized(**own)
        return dataclasses.replace(model, block=made, end_sizes=ends, end_feedforward=inner)
    except ValueError:
        return None


def width_of(block: Block, name: str) -> int | None:
    """Returns a field of the block, its mixer or its feed-forward; None if none has it."""
    owners = (block, block.mixer, block.feedforward)
    return next((getattr(owner, name) for owner in owners if hasattr(owner, name)), None)
