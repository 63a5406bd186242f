"""What reports know of a trial: its labels, its cost and one number that says how good it is."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from recursia.errors import DataError
from recursia.sweep import states
from recursia.sweep.results import Result
from recursia.sweep.standing import is_number

SEED = "seed"  # the label of trials that differ by chance alone
# The number that says how good a trial is: the first of these that any trial has. A model that
# looks ahead as published has a second one, in mode "causal", and is compared by that.
METRICS = ("validation_loss", "loss")
CAUSAL = "_causal"
BASE = "base"  # the label of configurations that trials change
Labels = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Point:
    """A trial that has ended.

    Attributes:
      name: the trial's.
      labels: by name; see `labelled`.
      size: unique parameters.
      flops: of its training.
      loss: its metric, in nats per token; NaN if it diverged.
    """

    name: str
    labels: Labels
    size: int
    flops: float
    loss: float

    @property
    def is_diverged(self) -> bool:
        """Whether there is no loss to fit."""
        return not math.isfinite(self.loss)


def metric_of(results: Sequence[Result]) -> str:
    """Returns the metric by which trials are compared; raises DataError if none has any yet."""
    for metric in METRICS:
        if any(metric in result.metrics for result in results if result.state == states.FINISHED):
            return metric
    raise DataError(
        f"none of the {len(results)} trials has finished with a loss; run the sweep first"
    )


def points(results: Sequence[Result], metric: str) -> list[Point]:
    """Returns the trials that have finished with the metric, or diverged, sorted by name."""
    found = []
    for result, labels in zip(results, labelled(results), strict=True):
        loss = result.metrics.get(metric + CAUSAL, result.metrics.get(metric, math.nan))
        if result.state == states.DIVERGED:
            loss = math.nan
        elif result.state != states.FINISHED or metric not in result.metrics:
            continue
        cost = result.unique_parameters, result.training_flops
        found.append(Point(result.name, labels, *cost, loss))
    return sorted(found, key=lambda point: point.name)


def labelled(results: Sequence[Result]) -> list[Labels]:
    """Returns each trial's labels, with the overrides in which trials of equal ones differ.

    These are named by the last part of their fields, as far as that is unique; of bases that
    differ, the name is "base".
    """
    groups: dict[str, list[Labels]] = {}
    rows = [{BASE: result.config, **result.overrides} for result in results]
    for result, row in zip(results, rows, strict=True):
        told = sorted((name, value) for name, value in result.labels.items() if name != SEED)
        groups.setdefault(repr(told), []).append(row)
    fields = list(dict.fromkeys(field for group in groups.values() for field in varying(group)))
    last = [field.rpartition(".")[2] for field in fields]
    taken = [*last, *{label for result in results for label in result.labels}]
    names = {
        field: name if taken.count(name) == 1 else field
        for field, name in zip(fields, last, strict=True)
    }
    short = [{names[f]: row[f] for f in fields if f in row} for row in rows]
    return [
        {**_with_one_seed(labels), **result.labels}
        for labels, result in zip(short, results, strict=True)
    ]


def _with_one_seed(labels: Labels) -> Labels:
    """Returns labels in which `train.seed` and `data.seed` are one."""
    of = [name for name in labels if name.rpartition(".")[2] == SEED]
    rest = {name: value for name, value in labels.items() if name not in of}
    seeds = [labels[name] for name in of]
    return {**rest, SEED: seeds[0] if len(set(seeds)) == 1 else str(seeds)} if of else rest


def varying(rows: Iterable[Labels]) -> list[str]:
    """Returns the names under which the rows have different values, in the order of the rows."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if len({repr(row.get(name)) for row in rows}) > 1]


def grouped(points: Iterable[Point], apart_from: Iterable[str]) -> dict[str, list[Point]]:
    """Returns the points of each combination of labels, by a name that is as short as can be.

    Args:
      points: of a sweep.
      apart_from: labels in which the points of a group may differ, besides seeds.
    """
    points = list(points)
    names = [n for n in varying(p.labels for p in points) if n not in (*apart_from, SEED)]
    key = lambda point, names: tuple(repr(point.labels.get(name)) for name in names)
    whole = {key(point, names) for point in points}
    for name in reversed(names):  # what follows from the other labels is not said
        fewer = [each for each in names if each != name]
        if len({key(point, fewer) for point in points}) == len(whole):
            names = fewer
    groups: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: _order(p, names)):
        groups.setdefault(_said(point.labels, names), []).append(point)
    return groups


def _said(labels: Labels, names: Sequence[str]) -> str:
    said = lambda name, value: value if isinstance(value, str) else f"{name} {value}"
    return ", ".join(said(name, labels[name]) for name in names if name in labels) or "all trials"


def _order(point: Point, names: Sequence[str]) -> tuple:
    return (*(order(point.labels.get(name)) for name in names), point.name)


def order(value: Any) -> tuple:
    """Returns a key that sorts numbers by size, and before other values, which sort as text."""
    return (0, value, "") if is_number(value) else (1, 0, str(value))
