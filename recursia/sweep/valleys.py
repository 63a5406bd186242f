"""Where losses are least along one axis, and how that moves along another.

At equal training FLOPs the axis is the size (approach 2 of Hoffmann et al. 2022, arXiv 2203.15556);
of learning rates it is the rate. A parabola in the logarithm of the axis gives the least loss and
its place; across budgets, widths or recursions both follow power laws.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from recursia.sweep import points as trials
from recursia.sweep.fits import NotFitted, Parabola, PowerLaw, parabola, power_law
from recursia.sweep.points import Point

BUDGET, RATE = "budget", "learning_rate"  # labels that say which axis a sweep has


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is on an axis: its label, its name in words, and its value for a trial."""

    label: str
    words: str
    plural: str
    value: Callable[[Point], float]


SIZE = Axis("size", "unique parameters", "sizes", lambda point: point.size)
FLOPS = Axis(BUDGET, "training FLOPs", "budgets", lambda point: point.flops)


@dataclasses.dataclass(frozen=True)
class Valley:
    """The trials at one place along a family, and the parabola through their losses.

    Attributes:
      at: the place: the mean of the trials' values there.
      points: the trials.
      fit: None where there is none.
    """

    at: float
    points: tuple[Point, ...]
    fit: Parabola | None

    @property
    def lowest(self) -> float:
        """The loss of the best trial, which a parabola may undercut; NaN if all diverged."""
        return min((p.loss for p in self.points if not p.is_diverged), default=math.nan)


@dataclasses.dataclass(frozen=True)
class Family:
    """Valleys of trials that differ in two axes and in their seeds.

    Attributes:
      name: of the other labels.
      across: the axis of the parabolas.
      along: the axis on which the valleys lie.
      valleys: in ascending order along it.
      best: the place of the least loss, along the axis.
      least: the least loss, along the axis.
      refused: why a fit is missing, a line each.
    """

    name: str
    across: Axis
    along: Axis
    valleys: tuple[Valley, ...]
    best: PowerLaw | None
    least: PowerLaw | None
    refused: tuple[str, ...]


def families(points: Sequence[Point]) -> list[list[Family]]:
    """Returns the families that labels call for: a list for each pair of axes.

    A label "budget" asks for losses by size at each budget, and a label "learning_rate" for losses
    by rate along every other number.
    """
    names = trials.varying(point.labels for point in points)
    found = []
    if any(BUDGET in point.labels for point in points):
        kept = [point for point in points if BUDGET in point.labels]
        found.append(_families(kept, SIZE, FLOPS, _labels_of_size(kept)))
    kept = [point for point in points if _has(point, RATE)]
    if RATE in names and kept:
        rate = _axis(RATE)
        for name in [n for n in names if n not in (RATE, BUDGET, trials.SEED)]:
            if all(_has(point, name) for point in kept):
                found.append(_families(kept, rate, _axis(name), (RATE, name)))
        if not found:
            found.append(_families(kept, rate, FLOPS, (RATE,)))
    return found


def _has(point: Point, name: str) -> bool:
    value: Any = point.labels.get(name)
    return trials.is_number(value) and value > 0


def _labels_of_size(points: Sequence[Point]) -> tuple[str, ...]:
    """Returns the labels that say nothing but the size and the budget: "width" or "size"."""
    return BUDGET, *(name for name in ("width", "size") if any(name in p.labels for p in points))


def _axis(name: str) -> Axis:
    words = name.replace("_", " ")
    plural = words if words.endswith("s") else f"{words}s"
    return Axis(name, words, plural, lambda point: point.labels[name])


def _families(
    points: Sequence[Point], across: Axis, along: Axis, apart_from: tuple[str, ...]
) -> list[Family]:
    groups = trials.grouped(points, apart_from)
    return [_family(name, group, across, along) for name, group in groups.items()]


def _family(name: str, points: Sequence[Point], across: Axis, along: Axis) -> Family:
    by_place: dict[str, list[Point]] = {}
    for point in points:
        by_place.setdefault(repr(point.labels.get(along.label)), []).append(point)
    valleys, refused = [], []
    for some in by_place.values():
        at = statistics.fmean(along.value(point) for point in some)
        if not at > 0:
            refused.append(f"{name}: the {along.words} of {len(some)} trials are not known")
            continue
        told = [(x, p.loss) for p in some if not p.is_diverged and (x := across.value(p)) > 0]
        try:
            fit = parabola([x for x, _ in told], [loss for _, loss in told], across.plural)
        except NotFitted as error:
            fit, diverged = None, sum(point.is_diverged for point in some)
            where = f"{name}, {along.words} {at:.4g}" if len(by_place) > 1 else name
            refused.append(f"{where}: {error}" + f" ({diverged} diverged)" * bool(diverged))
        valleys.append(Valley(at, tuple(some), fit))
    valleys.sort(key=lambda valley: valley.at)
    (best, least), lines = _laws(valleys, along)
    refused += [f"{name}: {line}" for line in lines] if len(valleys) > 1 else []
    return Family(name, across, along, tuple(valleys), best, least, tuple(refused))


def _laws(valleys: Sequence[Valley], along: Axis) -> tuple[list[PowerLaw | None], list[str]]:
    """Returns the power laws of the place and of the depth, and why they are missing."""
    fitted = [(valley.at, valley.fit) for valley in valleys if valley.fit]
    at = [place for place, _ in fitted]
    laws: list[PowerLaw | None] = [None, None]
    try:
        best = [fit.best.value for _, fit in fitted]
        laws[0] = power_law(at, best, [fit.draws[0] for _, fit in fitted], along.plural)
        least = [fit.least.value for _, fit in fitted]
        draws = [fit.draws[1] for _, fit in fitted]
        laws[1] = power_law(at, least, draws, along.plural, has_floor=True)
    except NotFitted as error:
        return laws, [str(error)]
    return laws, []
