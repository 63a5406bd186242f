"""Models at their best learning rates: confidence intervals over seeds, and what is noise.

Trials are grouped by their labels apart from rate and seed. A group is an arm, and stands for its
rate of least mean loss; intervals cover 95 % by Student's t. Arms are compared with the best one
seed by seed, as a seed is also the order of the data. The seeds that choose a rate are those that
are then compared, which flatters arms with more rates.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import rich.table
from rich.markup import escape
from scipy import stats

from recursia.sweep import points as trials
from recursia.sweep.points import Point
from recursia.sweep.valleys import RATE

COVERED = 0.95  # of an interval
_FEWEST = 2  # seeds with an interval

METHOD = (
    "Each at its learning rate of least mean loss, if several were tried with the same seeds. "
    "Intervals cover 95 % by Student's t over seeds; differences from the best are taken seed by "
    "seed, and are noise where their interval holds 0. They are not corrected for their number."
)


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over seeds, and half its interval; infinite for a single seed."""

    value: float
    half: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds 0."""
        return abs(self.value) <= self.half

    def __format__(self, spec: str) -> str:
        number = spec.lstrip("+")
        return f"{self.value:{spec}}" + f" ± {self.half:{number}}" * math.isfinite(self.half)


@dataclasses.dataclass(frozen=True)
class Arm:
    """The trials of one model at its best learning rate.

    Attributes:
      name: of the other labels.
      rate: None where trials have no such label.
      is_at_end: whether the rate is the least or the largest of several, so that a better one may
        lie beyond.
      losses: by seed, without trials that diverged.
      diverged: trials that did at that rate.
      loss: the mean.
      over_best: loss over the best arm's, of seeds that both have; None for the best arm itself.
      size, flops: of a trial.
    """

    name: str
    rate: float | None
    is_at_end: bool
    losses: Mapping[str, float]
    diverged: int
    loss: Mean
    over_best: Mean | None
    size: int
    flops: float


def arms(points: Sequence[Point]) -> list[Arm]:
    """Returns the arms, the best first; none where no seeds differ, or where there is but one."""
    if trials.SEED not in trials.varying(point.labels for point in points):
        return []
    # A rate that is a word is a label as any other.
    given = [point.labels[RATE] for point in points if RATE in point.labels]
    has_rates = all(map(trials.is_number, given))
    groups = trials.grouped(points, (RATE,) if has_rates else ())
    found = [arm for name, group in groups.items() if (arm := _arm(name, group, has_rates))]
    if len(groups) == 1 or not found:
        return []
    best, *others = sorted(found, key=lambda arm: (arm.diverged, arm.loss.value))
    return [best, *(dataclasses.replace(arm, over_best=_over(arm, best)) for arm in others)]


def _arm(name: str, group: Sequence[Point], has_rates: bool) -> Arm | None:
    """Returns a group's arm; None if all its trials diverged."""
    by_rate: dict[float | None, list[Point]] = {}
    for point in group:
        rate = point.labels.get(RATE) if has_rates else None
        by_rate.setdefault(rate, []).append(point)
    sound = {rate: some for rate, some in by_rate.items() if _losses(some)}
    if not sound:
        return None
    # A rate at which more trials diverge is worse, whatever the others' loss.
    lost = lambda rate: len(sound[rate]) - len(_losses(sound[rate]))
    mean = lambda rate: statistics.fmean(_losses(sound[rate]).values())
    rate = min(sound, key=lambda rate: (lost(rate), mean(rate)))
    losses, rates = _losses(sound[rate]), [each for each in by_rate if each is not None]
    return Arm(
        name=name,
        rate=rate,
        is_at_end=len(rates) > 1 and rate in (min(rates), max(rates)),
        losses=losses,
        diverged=lost(rate),
        loss=_mean(list(losses.values())),
        over_best=None,
        size=sound[rate][0].size,
        flops=sound[rate][0].flops,
    )


def _losses(points: Sequence[Point]) -> dict[str, float]:
    told = {str(p.labels.get(trials.SEED)): p.loss for p in points if not p.is_diverged}
    return dict(sorted(told.items()))


def _over(arm: Arm, best: Arm) -> Mean | None:
    both = [seed for seed in arm.losses if seed in best.losses]
    return _mean([arm.losses[seed] - best.losses[seed] for seed in both]) if both else None


def _mean(values: Sequence[float]) -> Mean:
    if len(values) < _FEWEST:
        return Mean(values[0], math.inf)
    half = stats.t.ppf((1 + COVERED) / 2, len(values) - 1) * stats.sem(values)
    return Mean(statistics.fmean(values), float(half))


def table(found: Sequence[Arm], metric: str) -> rich.table.Table:
    """Returns the arms as a table."""
    made = rich.table.Table(box=None, pad_edge=False)
    made.add_column("compared", no_wrap=True)
    columns = (metric.replace("_", " "), "over the best", "seeds", "learning rate", "parameters")
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    for arm in found:
        count = f"{len(arm.losses)}" + f" and {arm.diverged} diverged" * bool(arm.diverged)
        numbers = (f"{arm.loss:.3f}", said(arm.over_best), count, rate(arm), f"{arm.size:,}")
        made.add_row(escape(arm.name), *numbers)
    return made


def said(over: Mean | None) -> str:
    """Returns a difference in words."""
    if over is None:
        return ""
    return f"{over:+.3f}" + ", noise" * over.is_noise


def rate(arm: Arm) -> str:
    """Returns an arm's learning rate in words: one at an end of those tried is marked."""
    if arm.rate is None:
        return ""
    return f"{arm.rate:.4g}" + ", at an end" * arm.is_at_end
