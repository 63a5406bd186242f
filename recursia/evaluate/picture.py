"""Draws what `recursia eval` found: needs matplotlib, of the extra `plot`."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recursia.evaluate.tables import main_metric

Row = dict[str, Any]
Panel = Callable[[Axes, Mapping[str, Any]], None]
_LINES = {"eval": "o-", "causal": "s--"}
_CAPACITY = "mean capacity of the recursions"
_MOST = 8  # tasks with a line or bar of their own


def write(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes the picture of a result, whose suffix says its format.

    Args:
      result: of `tables.evaluate`.
      path: of a file that is not there yet.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    with matplotlib.rc_context({"svg.hashsalt": "recursia"}):
        draw(result).savefig(part, dpi=110)
    os.replace(part, path)


def draw(result: Mapping[str, Any]) -> Figure:
    """Returns a panel for each question that the result answers."""
    panels = [panel for panel, is_there in _PANELS if is_there(result)]
    columns = min(3, max(len(panels), 1))
    rows = -(-max(len(panels), 1) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.5 * rows), layout="constrained")
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        panel(axes, result)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    figure.suptitle(f"{result['workdir']}, step {result['step']}")
    return figure


def tasks_shown(result: Mapping[str, Any]) -> list[str]:
    """Returns the tasks that were asked for by name, and of those at most eight."""
    names = list(dict.fromkeys(row["task"] for row in result.get("tasks", ())))
    asked = [name for name in names if name in result["suite"]["tasks"]] if names else []
    return (asked or names)[:_MOST]


def _loss_by_depth(axes: Axes, result: Mapping[str, Any]) -> None:
    _by_depth(axes, _as_trained(result["table"]), _loss, "")
    _at_trained(axes, result)
    axes.set(title="loss against depth", xlabel="recursions walked", ylabel="nats per token")


def _tasks_by_depth(axes: Axes, result: Mapping[str, Any]) -> None:
    for index, name in enumerate(tasks_shown(result)):
        rows = [row for row in _as_trained(result["tasks"]) if row["task"] == name]
        _by_depth(axes, rows, _score, f"{name}, {main_metric(rows[0])}", f"C{index}")
    _at_trained(axes, result)
    axes.set(title="tasks against depth", xlabel="recursions walked", ylabel="score")


def _cache_by_depth(axes: Axes, result: Mapping[str, Any]) -> None:
    found = {row["depth"]: row["cache_bytes_per_token"] for row in _as_trained(_any(result))}
    axes.plot(list(found), list(found.values()), "o-", color="0.4")
    _at_trained(axes, result)
    axes.set(title="cache", xlabel="recursions walked", ylabel="bytes per token", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _loss_by_capacity(axes: Axes, result: Mapping[str, Any]) -> None:
    _by_capacity(axes, result, result["table"], _loss, "C0", "")
    axes.set(title="loss against capacity", xlabel=_CAPACITY, ylabel="nats per token")


def _tasks_by_capacity(axes: Axes, result: Mapping[str, Any]) -> None:
    for index, name in enumerate(tasks_shown(result)):
        rows = [row for row in result["tasks"] if row["task"] == name]
        label = f"{name}, {main_metric(rows[0])}"
        _by_capacity(axes, result, rows, _score, f"C{index}", label)
    axes.set(title="tasks against capacity", xlabel=_CAPACITY, ylabel="score")


def _recursions_by_task(axes: Axes, result: Mapping[str, Any]) -> None:
    rows = [row for row in _as_trained(_all(result)) if row["depth"] == _main_depth(result)]
    _bars(axes, rows, lambda row: row.get("mean_depth"))
    axes.set(title="recursions by task", xlabel="recursions per token")


def _gap_by_task(axes: Axes, result: Mapping[str, Any]) -> None:
    rows = [row for row in _all(result) if row["depth"] == _main_depth(result)]
    _bars(axes, rows, lambda row: row.get("causal_gap"))
    axes.axvline(0, color="0.4", lw=0.8)
    axes.set(title="causal less published", xlabel="difference; of text, nats per token")


_PANELS: tuple[tuple[Panel, Callable[[Mapping[str, Any]], bool]], ...] = (
    (_loss_by_depth, lambda result: "table" in result),
    (_tasks_by_depth, lambda result: bool(tasks_shown(result))),
    (_recursions_by_task, lambda result: bool(tasks_shown(result))),
    (_gap_by_task, lambda result: any("causal_gap" in row for row in _all(result))),
    (_loss_by_capacity, lambda result: _has_capacity(result.get("table", ()))),
    (_tasks_by_capacity, lambda result: _has_capacity(result.get("tasks", ()))),
    (_cache_by_depth, lambda result: any("cache_bytes_per_token" in r for r in _all(result))),
)


def _loss(row: Row) -> float:
    return row["nats_per_token"]


def _score(row: Row) -> float:
    return row["metrics"][main_metric(row)]


def _all(result: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of text, as the task "text", and of the tasks that are shown."""
    text = [{**row, "task": "text"} for row in result.get("table", ())]
    shown = tasks_shown(result)
    return text + [row for row in result.get("tasks", ()) if row["task"] in shown]


def _any(result: Mapping[str, Any]) -> list[Row]:
    return [row for row in _all(result) if "cache_bytes_per_token" in row]


def _as_trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "capacity" not in row]


def _main_depth(result: Mapping[str, Any]) -> int:
    depths = [row["depth"] for row in _all(result)]
    return result["trained_depth"] if result["trained_depth"] in depths else max(depths)


def _by_depth(
    axes: Axes, rows: Sequence[Row], value: Callable[[Row], float], name: str, color: str = "C0"
) -> None:
    """Draws a line over depth for each mode."""
    for mode, line in _LINES.items():
        points = sorted((row["depth"], value(row)) for row in rows if row["mode"] == mode)
        if points:
            label = ", ".join(filter(None, [name, mode]))
            axes.plot(*zip(*points, strict=True), line, color=color, label=label, ms=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _has_capacity(rows: Sequence[Row]) -> bool:
    return any("capacity" in row for row in rows)


def _by_capacity(
    axes: Axes,
    result: Mapping[str, Any],
    rows: Sequence[Row],
    value: Callable[[Row], float],
    color: str,
    label: str,
) -> None:
    """Draws published routing at the trained depth, or the deepest there is."""
    depth, trained = _main_depth(result), result["config"]["model"]["depth"].get("capacity")
    points = [
        (sum(capacity[:depth]) / depth, value(row))
        for row in rows
        if row["depth"] == depth and row["mode"] == "eval"
        if (capacity := row.get("capacity", trained))
    ]
    axes.plot(*zip(*sorted(points), strict=True), "o-", color=color, label=label, ms=4)


def _at_trained(axes: Axes, result: Mapping[str, Any]) -> None:
    axes.axvline(result["trained_depth"], color="0.6", ls=":", label="trained")


def _bars(axes: Axes, rows: Sequence[Row], value: Callable[[Row], float | None]) -> None:
    """Draws a bar for each task and mode, the first on top."""
    found = [(row["task"], row["mode"], x) for row in rows if (x := value(row)) is not None]
    modes = [mode for mode in _LINES if any(mode == each for _, each, _ in found)]
    names = list(dict.fromkeys(name for name, _, _ in found))
    height = 0.8 / max(len(modes), 1)
    for at, mode in enumerate(modes):
        some = [(names.index(name) + at * height, x) for name, each, x in found if each == mode]
        axes.barh([y for y, _ in some], [x for _, x in some], height, label=mode)
    axes.set_yticks([i + height * (len(modes) - 1) / 2 for i in range(len(names))], names)
    axes.invert_yaxis()
