"""Trials ranked by their metric, those that differ in seeds alone in one row."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import rich.table
from rich.markup import escape

from recursia.sweep import points as trials
from recursia.sweep.points import Labels, Point


@dataclasses.dataclass(frozen=True)
class Row:
    """Trials that differ in their seeds alone.

    Attributes:
      rank: from 1 for the least mean; 0 if every trial diverged.
      labels: those in which the sweep's trials differ, without seeds.
      mean: of the metric, over the trials that did not diverge; NaN if all did.
      deviation: standard deviation between them; NaN for less than two.
      count: of those trials.
      diverged: trials that did.
      size, flops: of a trial.
    """

    rank: int
    labels: Labels
    mean: float
    deviation: float
    count: int
    diverged: int
    size: int
    flops: float


def rows(points: Sequence[Point]) -> list[Row]:
    """Returns a row for each combination of labels apart from seeds, the least mean first."""
    names = [n for n in trials.varying(p.labels for p in points) if n != trials.SEED]
    groups: dict[tuple, list[Point]] = {}
    for point in points:
        groups.setdefault(tuple(repr(point.labels.get(n)) for n in names), []).append(point)
    found = [_row(group, names) for group in groups.values()]
    found.sort(key=lambda row: (not row.count, row.mean if row.count else 0.0))
    return [dataclasses.replace(row, rank=i * bool(row.count)) for i, row in enumerate(found, 1)]


def _row(group: Sequence[Point], names: Iterable[str]) -> Row:
    losses = [point.loss for point in group if not point.is_diverged]
    first = group[0]
    return Row(
        rank=0,
        labels={name: first.labels[name] for name in names if name in first.labels},
        mean=statistics.fmean(losses) if losses else math.nan,
        deviation=statistics.stdev(losses) if len(losses) > 1 else math.nan,
        count=len(losses),
        diverged=len(group) - len(losses),
        size=first.size,
        flops=first.flops,
    )


def table(rows: Sequence[Row], metric: str) -> rich.table.Table:
    """Returns the rows as a table."""
    names = list(dict.fromkeys(name for row in rows for name in row.labels))
    made = rich.table.Table(box=None, pad_edge=False)
    columns = ("", metric.replace("_", " "), "deviation", "trials", "parameters", "training FLOPs")
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    for name in names:
        made.add_column(escape(name.replace("_", " ")), no_wrap=True)
    for row in rows:
        mean = f"{row.mean:.4f}" if row.count else "diverged"
        deviation = "" if math.isnan(row.deviation) else f"{row.deviation:.4f}"
        count = f"{row.count}" + f" and {row.diverged} diverged" * bool(row.count and row.diverged)
        numbers = (str(row.rank or ""), mean, deviation, count)
        costs = (f"{row.size:,}", f"{row.flops:.4g}")
        labels = (escape(_said(row.labels.get(name, ""))) for name in names)
        made.add_row(*numbers, *costs, *labels)
    return made


def _said(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
