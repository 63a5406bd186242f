"""Runs side by side: at equal FLOPs, parameters and cache, and which of them none surpasses."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from recursia import budget
from recursia.report.panels import COLORS, Panel, legend, plot, source
from recursia.report.record import Record

_NEAR = 0.02  # relative difference up to which parameters or caches are called equal
_COSTS = (
    ("params", "parameters", "unique parameters"),
    ("flops", "training FLOPs", "FLOPs of all steps"),
    ("cache_bytes", "KV cache", "bytes per token of context"),
)


@dataclasses.dataclass(frozen=True)
class Point:
    """A run as a point: what it costs, and how well it predicts.

    Attributes:
      name: of the run.
      params: unique parameters.
      flops: of its training until its last validation.
      cache_bytes: per token of context.
      loss: validation loss there, in bits per byte; the training loss in nats per token where no
        run of the comparison is validated.
      equal: the loss at the FLOPs that all runs have spent; NaN where it is not known.
    """

    name: str
    params: float
    flops: float
    cache_bytes: float
    loss: float
    equal: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs as points, what is compared, and a table.

    Attributes:
      points: of the runs.
      unit: of the losses.
      flops: that all runs have spent.
      head: of the table.
      rows: of the table.
      notes: on what is equal, and on what cannot be compared.
      panels: losses against costs, with the frontier.
    """

    points: list[Point]
    unit: str
    flops: float
    head: list[str]
    rows: list[list[str]]
    notes: list[str]
    panels: list[Panel]


def comparison(records: Sequence[Record]) -> Comparison | None:
    """Returns the comparison of several runs; None of one, or of runs without a loss and costs."""
    metric, unit = "validation_bits_per_byte", "bits per byte of validation text"
    if not all(any(metric in row for row in record.validation) for record in records):
        metric, unit = "loss", "nats per token of training text"
    curves = {record.name: _curve(record, metric) for record in records if record.cost}
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    if len(curves) < 2:
        return None
    flops = min(curve[-1, 0] for curve in curves.values())
    points = [
        _point(record, curves[record.name], flops) for record in records if record.name in curves
    ]
    panels = [_frontier(points, *cost, unit) for cost in _COSTS]
    head = ["run", "parameters", "KV cache", "FLOPs", "loss", "loss at equal FLOPs"]
    head.append(f"difference to {points[0].name}")
    rows = [_row(point, points[0]) for point in points]
    return Comparison(points, unit, flops, head, rows, _notes(points, records, unit, flops), panels)


def _curve(record: Record, metric: str) -> np.ndarray:
    """Returns FLOPs and losses of a run's rows: [n 2]."""
    rows = [r for r in (record.training if metric == "loss" else record.validation) if metric in r]
    flops = record.lengths(rows)["FLOPs"]
    return np.array([(x, row[metric]) for x, row in zip(flops, rows, strict=True)]).reshape(-1, 2)


def _point(record: Record, curve: np.ndarray, flops: float) -> Point:
    cost = record.cost
    assert cost is not None
    is_within = curve[0, 0] <= flops
    equal = float(np.interp(flops, curve[:, 0], curve[:, 1])) if is_within else math.nan
    params, cache = float(cost.unique_parameters), cost.cache_bytes_per_token
    return Point(record.name, params, float(curve[-1, 0]), cache, float(curve[-1, 1]), equal)


def _row(point: Point, first: Point) -> list[str]:
    amounts = [
        budget.amount(point.params),
        budget.amount(point.cache_bytes, is_bytes=True),
        budget.amount(point.flops),
    ]
    is_known = math.isfinite(point.equal)
    equal = f"{point.equal:.4f}" if is_known else "not that far yet"
    difference = f"{point.equal - first.equal:+.4f}" if is_known and point is not first else ""
    return [point.name, *amounts, f"{point.loss:.4f}", equal, difference]


def _notes(
    points: Sequence[Point], records: Sequence[Record], unit: str, flops: float
) -> list[str]:
    """Returns sentences on what is equal, and on what cannot be compared."""
    notes = [
        f"Losses are in {unit}. At equal FLOPs is after {budget.amount(flops)} FLOPs, the "
        "most that all runs have spent; a loss there lies on the line between two rows."
    ]
    for attribute, words in (("params", "parameters"), ("cache_bytes", "cache")):
        for index, point in enumerate(points):
            ours = getattr(point, attribute)
            near = [
                other for other in points[index + 1 :]
                if abs(getattr(other, attribute) / max(ours, 1e-9) - 1) <= _NEAR
            ]  # fmt: skip
            for other in near:
                gap = other.loss - point.loss
                notes.append(
                    f"With equal {words} (within 2 %), {other.name} ends {abs(gap):.4f} "
                    f"{'below' if gap < 0 else 'above'} {point.name}."
                )
    if len({_data(record) for record in records}) > 1:
        notes.append(
            "The runs do not have the same data settings: their losses may be of different text."
        )
    return notes


def _data(record: Record) -> tuple:
    data = record.run.data
    return data.path, data.text, data.validation_text, data.validation_fraction


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the indices of the points that no other one surpasses in both numbers, by cost."""
    found, best = [], math.inf
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if points[index][1] < best:
            found.append(index)
            best = points[index][1]
    return found


def _frontier(points: Sequence[Point], attribute: str, title: str, label: str, unit: str) -> Panel:
    hover = [("run", "$name"), (title, "@x{0.00a}"), ("loss", "@y{0.0000}")]
    drawn = plot(label, unit, hover, x_axis_type="log")
    pairs = [(getattr(point, attribute), point.loss) for point in points]
    best = frontier(pairs)
    edge = source({"x": [pairs[i][0] for i in best], "y": [pairs[i][1] for i in best]})
    how = {"color": "#999999", "line_dash": "dashed"}
    drawn.step("x", "y", source=edge, mode="after", legend_label="frontier", **how)
    for index, (point, (x, y)) in enumerate(zip(points, pairs, strict=True)):
        color = COLORS[index % len(COLORS)]
        how = {"color": color, "size": 11, "name": point.name, "legend_label": point.name}
        drawn.scatter("x", "y", source=source({"x": [x], "y": [y]}), **how)
    legend(drawn)
    caption = "Below and to the left is better; no run surpasses those on the dashed line."
    return Panel(f"frontier_{attribute}", f"Loss and {title}", caption, drawn)
