"""Curves of training, of several runs over each other: loss, gradient norm, speed, depth."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from recursia.report.panels import COLORS, MOST, Panel, legend, plot, smoothed, source, spread
from recursia.report.record import LENGTHS, Record, Row

# Of rows of training: metric, title, unit, caption.
_OTHERS = (
    ("learning_rate", "Learning rate", "learning rate", ""),
    ("gradient_norm", "Gradient norm", "norm before clipping", ""),
    ("tokens_per_second", "Throughput", "tokens per second", "Without compilation and validation."),
    (
        "flops_utilization",
        "Utilisation",
        "share of the devices' peak",
        "FLOPs of the model, with its recursions and routing, over the peak of the devices.",
    ),
)
_ALL = 4000  # points of the curves of all runs in one plot, which bounds the size of the page
_RAW, _SMOOTH, _VALIDATION, _CAUSAL = "raw", "smooth", "validation", "causal"
_HOVER = [("run", "$name"), ("step", "@steps{0,0}"), ("tokens", "@tokens{0.00a}")]


def curves(records: Sequence[Record]) -> list[Panel]:
    """Returns the panels of which at least one run has values.

    Every curve has a column for each of `LENGTHS`, so that the page can draw it against another.
    """
    most = max(2, min(MOST, _ALL // len(records)))
    panels = [_loss(records, most), *(_other(records, most, *each) for each in _OTHERS)]
    return [panel for panel in panels if panel.plot.renderers]


def _loss(records: Sequence[Record], most: int) -> Panel:
    drawn = plot("steps", "nats per token", [*_HOVER, ("loss", "@y{0.0000}")])
    are_several = len(records) > 1
    for index, record in enumerate(records):
        color = COLORS[index % len(COLORS)]
        label = lambda what, name=record.name: f"{name}, {what}" if are_several else what
        line = {"color": color, "name": record.name}
        if record.training:
            losses = [row["loss"] for row in record.training]
            raw = _columns(record, record.training, losses, most)
            drawn.line("x", "y", source=raw, alpha=0.3, tags=[_RAW], **line)
            smooth = _columns(record, record.training, smoothed(losses), most)
            how = {"line_width": 1.6, "tags": [_SMOOTH], "legend_label": label("training")}
            drawn.line("x", "y", source=smooth, **how, **line)
        for name, dash, tag in (("", "solid", _VALIDATION), ("_causal", "dashed", _CAUSAL)):
            metric = f"validation_loss{name}"
            if rows := [row for row in record.validation if metric in row]:
                what = f"validation{name.replace('_', ', ')}"
                data = _columns(record, rows, [row[metric] for row in rows], most)
                how = {"line_dash": dash, "legend_label": label(what), "tags": [tag]}
                drawn.line("x", "y", source=data, line_width=1.2, alpha=0.8, **how, **line)
                how = {**how, "fill_color": color if not name else "white"}
                how.pop("line_dash")
                drawn.scatter("x", "y", source=data, size=7, **how, **line)
    legend(drawn)
    caption = (
        "The thin line is the loss of each batch, the thick one a mean over its neighbours; dots "
        "are validations. Bits per byte of training assume the tokens per byte of the validation "
        "text."
    )
    return Panel("loss", "Loss", caption, drawn, x="length", y="loss")


def _other(
    records: Sequence[Record], most: int, metric: str, title: str, unit: str, caption: str
) -> Panel:
    log = {"y_axis_type": "log"} if metric == "gradient_norm" else {}
    drawn = plot("steps", unit, [*_HOVER, (title.lower(), "@y{0.0000a}")], **log)
    for index, record in enumerate(records):
        if rows := [row for row in record.training if isinstance(row.get(metric), float)]:
            values = [row[metric] for row in rows]
            values = [value if value > 0 else math.nan for value in values] if log else values
            more = {"legend_label": record.name} if len(records) > 1 else {}
            how = {"color": COLORS[index % len(COLORS)], "name": record.name, "line_width": 1.3}
            drawn.line("x", "y", source=_columns(record, rows, values, most), **how, **more)
    legend(drawn)
    return Panel(metric, title, caption, drawn, x="length")


def _columns(
    record: Record, rows: Sequence[Row], values: Sequence[float] | np.ndarray, most: int = MOST
) -> Any:
    """Returns a curve: `x` and `y` as first drawn, and what the reader may choose for them."""
    y = np.asarray(values, float)
    bits = y / math.log(2) * (record.tokens_per_byte or math.nan)
    lengths = record.lengths(rows)
    columns = {**lengths, "x": lengths["steps"], "y": y, "nats": y, "bits": bits}
    return source(columns, most)


def by_recursion(record: Record) -> list[Panel]:
    """Returns how recursions changed over training: every metric that has an entry for each.

    Args:
      record: of the run.
    """
    panels = [_mean_depth(record)] if _has_depth(record) else []
    count = record.run.model.schedule.num_recursions
    for rows in (record.validation, record.training):
        names = dict.fromkeys(name for row in rows for name, v in row.items() if _is_list(v))
        for name in names:
            found = [row for row in rows if _is_list(row.get(name))]
            if (width := len(found[-1][name])) == count > 1:
                panels.append(_entries(record, name, [r for r in found if len(r[name]) == width]))
    return panels


def _has_depth(record: Record) -> bool:
    found = [row["mean_depth"] for row in record.training if "mean_depth" in row]
    return bool(found) and max(found) > 1 and max(found) - min(found) > 1e-3


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _mean_depth(record: Record) -> Panel:
    drawn = plot("steps", "recursions per token", [*_HOVER, ("recursions", "@y{0.000}")])
    rows = [row for row in record.training if "mean_depth" in row]
    values = smoothed([row["mean_depth"] for row in rows])
    how: dict[str, Any] = {"name": record.name, "legend_label": "training"}
    drawn.line("x", "y", source=_columns(record, rows, values), color=COLORS[0], **how)
    for index, metric in enumerate(("validation_mean_depth", "validation_mean_depth_causal"), 1):
        if some := [row for row in record.validation if metric in row]:
            what = metric.removeprefix("validation_mean_depth").replace("_", ", ")
            how = {"name": record.name, "legend_label": f"validation{what}"}
            how |= {"color": COLORS[index], "size": 7}
            data = _columns(record, some, [row[metric] for row in some])
            drawn.scatter("x", "y", source=data, **how)
    legend(drawn)
    return Panel("mean_depth", "Recursions per token over training", "", drawn, x="length")


def _entries(record: Record, name: str, rows: list[Row]) -> Panel:
    words = name.replace("_", " ").replace("lens loss", "loss after each recursion")
    words = words.replace(" causal", ", causal")
    unit = "nats per token" if "loss" in name else words
    drawn = plot("steps", unit, [("step", "@steps{0,0}"), ("value", "@y{0.0000}")])
    for index, recursion in enumerate(spread(len(rows[0][name]))):
        values = [row[name][recursion] for row in rows]
        columns = _columns(record, rows, values if "validation" in name else smoothed(values))
        how: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "name": record.name}
        how |= {"legend_label": f"recursion {recursion + 1}", "line_width": 1.4}
        drawn.line("x", "y", source=columns, **how)
        if "validation" in name:
            drawn.scatter("x", "y", source=columns, **{**how, "size": 6})
    legend(drawn)
    is_loss = "loss" in name
    title = f"{words[:1].upper()}{words[1:]}"
    return Panel(f"over_{name}", title, "", drawn, x="length", y="loss" if is_loss else "")


def lengths_of(records: Sequence[Record]) -> list[str]:
    """Returns the lengths that at least one run has."""
    has = lambda name: any(
        any(math.isfinite(value) for value in record.lengths(record.training)[name])
        for record in records
    )
    return [name for name in LENGTHS if has(name)]
