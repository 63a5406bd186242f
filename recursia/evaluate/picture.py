"""Draws what `recursia eval` found: needs matplotlib, of the extra `plot`."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recursia import safely
from recursia.evaluate import printout
from recursia.evaluate.variants import Row, main_metric

Result = Mapping[str, Any]
Panel = Callable[[Axes, Result], None]
_LINES = {"eval": ("o", "-"), "causal": ("s", "--")}
_BARS = {"eval": "0.35", "causal": "0.7"}
_CAPACITY, _DEPTH = "mean capacity", "recursions"
_MOST = 8  # tasks with a line or bar of their own


def write(result: Result, path: pathlib.Path) -> None:
    """Writes the picture of a result, whose suffix says its format.

    Args:
      result: of `tables.evaluate`.
      path: of a file that is not there yet.
    """
    with contextlib.ExitStack() as stack:
        part = stack.enter_context(safely.file(path, "picture"))
        stack.enter_context(matplotlib.rc_context({"svg.hashsalt": "recursia"}))
        draw(result).savefig(part, dpi=110)


def draw(result: Result) -> Figure:
    """Returns a panel for each question that the result answers."""
    panels = _panels(result)
    columns = 4 if len(panels) > 6 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 4.0 * rows + 0.5), layout="constrained")
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        panel(axes, result)
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
        if not axes.yaxis_inverted():  # bars have names there
            axes.ticklabel_format(useOffset=False)
        if handles := axes.get_legend_handles_labels()[0]:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "frameon": False}
            axes.legend(fontsize=8, ncols=min(3, len(handles)), **below)
    figure.suptitle(f"{result['workdir']}, step {result['step']}")
    return figure


def tasks_shown(result: Result) -> list[str]:
    """Returns the tasks that were asked for by name, and of those at most eight."""
    return printout.shown(result)[:_MOST]


def _panels(result: Result) -> list[Panel]:
    """Returns what draws each panel: scores first, then what they cost."""
    rows, metrics = _all(result), dict.fromkeys(map(main_metric, _of_tasks(result)))
    has_text, has_gap = "table" in result, lambda rows: any("causal_gap" in row for row in rows)
    panels: list[Panel] = [_loss_by_depth] if has_text else []
    panels += [functools.partial(_scores_by_depth, metric) for metric in metrics]
    if any("capacity" in row for row in rows):
        panels += [_loss_by_capacity] if has_text else []
        panels += [functools.partial(_scores_by_capacity, metric) for metric in metrics]
    panels += [_loss_gap] if has_gap(result.get("table", ())) else []
    panels += [_score_gaps] if has_gap(_of_tasks(result)) else []
    is_known = all(row.get("mean_depth", row["depth"]) == row["depth"] for row in rows)
    panels += [] if is_known and has_text and not metrics else [_recursions_by_task]
    return [*panels, _cache]


def _loss_by_depth(axes: Axes, result: Result) -> None:
    _by_depth(axes, _as_trained(result["table"]), _loss, "", "C0")
    _mark_trained(axes, result)
    axes.set(title="loss of the text against depth", xlabel=_DEPTH, ylabel="nats per token")


def _scores_by_depth(metric: str, axes: Axes, result: Result) -> None:
    modes: list[str] = []
    for name, color, rows in _with_metric(result, metric):
        modes = _by_depth(axes, _as_trained(rows), _score, name, color)
    for mode in modes if len(modes) > 1 else ():
        marker, style = _LINES[mode]
        axes.plot([], [], marker=marker, ls=style, color="0.3", label=mode, ms=4)
    _mark_trained(axes, result)
    label = f"{metric}, with standard error"
    axes.set(title="tasks against depth", xlabel=_DEPTH, ylabel=label)


def _loss_by_capacity(axes: Axes, result: Result) -> None:
    _by_capacity(axes, result, result["table"], _loss, "C0", "")
    axes.set(title="loss of the text against capacity", ylabel="nats per token")


def _scores_by_capacity(metric: str, axes: Axes, result: Result) -> None:
    for name, color, rows in _with_metric(result, metric):
        _by_capacity(axes, result, rows, _score, color, name)
    axes.set(title="tasks against capacity", ylabel=f"{metric}, with standard error")


def _loss_gap(axes: Axes, result: Result) -> None:
    points = [(row["depth"], row["causal_gap"]) for row in result["table"] if "causal_gap" in row]
    axes.plot(*zip(*sorted(points), strict=True), "s--", color="C0", ms=4)
    axes.axhline(0, color="0.4", lw=0.8)
    _mark_trained(axes, result)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    about = "loss, causal minus published routing"
    axes.set(title=about, xlabel=_DEPTH, ylabel="nats per token")


def _score_gaps(axes: Axes, result: Result) -> None:
    rows = [row for row in _of_tasks(result) if row["depth"] == _main_depth(result)]
    _bars(axes, rows, "causal_gap", "{:+.3f}")
    axes.axvline(0, color="0.4", lw=0.8)
    axes.margins(x=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set(title="tasks, causal minus published routing")
    axes.set(xlabel=f"{'; '.join(dict.fromkeys(map(main_metric, rows)))}, {_at(result)}")


def _recursions_by_task(axes: Axes, result: Result) -> None:
    rows = [row for row in _as_trained(_all(result)) if row["depth"] == _main_depth(result)]
    _bars(axes, rows, "mean_depth", "{:.2f}")
    axes.margins(x=0.15)
    axes.set(title="mean recursions by task", xlabel=f"recursions per token, {_at(result)}")


def _cache(axes: Axes, result: Result) -> None:
    lines: dict[str, dict[int, float]] = {}
    for row in _all(result):
        capacity = ", ".join(f"{share:.3g}" for share in row.get("capacity", ()))
        found = lines.setdefault(f"capacity {capacity}" if capacity else "as trained", {})
        found[row["depth"]] = row["cache_bytes_per_token"]
    for index, (name, points) in enumerate(lines.items()):
        label = name if len(lines) > 1 else None
        axes.plot(*zip(*sorted(points.items()), strict=True), "o-", color=f"C{index}", label=label)
    _mark_trained(axes, result)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        title="KV cache against depth", xlabel=_DEPTH, ylabel="bytes per token", ylim=(0, None)
    )


def _loss(row: Row) -> tuple[float, float]:
    return row["nats_per_token"], 0.0


def _score(row: Row) -> tuple[float, float]:
    """Returns the main metric of a task and its standard error, 0 if unknown."""
    metric, comma, how = main_metric(row).partition(", ")
    return row["metrics"][main_metric(row)], row["metrics"].get(f"{metric}_stderr{comma}{how}", 0.0)


def _of_tasks(result: Result) -> list[Row]:
    names = tasks_shown(result)
    return [row for row in result.get("tasks", ()) if row["task"] in names]


def _with_metric(result: Result, metric: str) -> list[tuple[str, str, list[Row]]]:
    """Returns the tasks that are shown and have a main metric: name, colour and rows."""
    found = []
    for index, name in enumerate(tasks_shown(result)):
        rows = [row for row in result["tasks"] if row["task"] == name]
        if main_metric(rows[0]) == metric:
            found.append((name, f"C{index}", rows))
    return found


def _all(result: Result) -> list[Row]:
    """Returns the rows of text, as the task "text", and of the tasks that are shown."""
    return [{**row, "task": "text"} for row in result.get("table", ())] + _of_tasks(result)


def _as_trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "capacity" not in row]


def _main_depth(result: Result) -> int:
    depths = [row["depth"] for row in _all(result)]
    return result["trained_depth"] if result["trained_depth"] in depths else max(depths)


def _at(result: Result) -> str:
    return f"at depth {_main_depth(result)}"


def _line(
    axes: Axes, points: list[tuple[float, tuple[float, float]]], mode: str, color: str, label: str
) -> None:
    """Draws points (x, (y, standard error of y)) as a line."""
    marker, style = _LINES[mode]
    xs, ys = zip(*sorted(points), strict=True)
    values, errors = zip(*ys, strict=True)
    how: dict[str, Any] = {"capsize": 2, "elinewidth": 0.7} if any(errors) else {}
    errors = errors if any(errors) else None
    how |= {"marker": marker, "ls": style, "color": color, "label": label, "ms": 4}
    axes.errorbar(xs, values, errors, **how)


def _by_depth(
    axes: Axes, rows: Sequence[Row], value: Callable[[Row], Any], name: str, color: str
) -> list[str]:
    """Draws a line over depth for each mode, the first of which has the name; returns the modes."""
    modes = [mode for mode in _LINES if any(row["mode"] == mode for row in rows)]
    for mode in modes:
        points = [(row["depth"], value(row)) for row in rows if row["mode"] == mode]
        _line(axes, points, mode, color, (name if mode == modes[0] else "") if name else mode)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return modes


def _by_capacity(
    axes: Axes,
    result: Result,
    rows: Sequence[Row],
    value: Callable[[Row], Any],
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
    _line(axes, points, "eval", color, label)
    if trained:
        has_mark = any(line.get_label() == "trained" for line in axes.lines)
        label = "_" if has_mark else "trained"  # what begins so is not in the legend
        axes.axvline(sum(trained[:depth]) / depth, color="0.5", ls=":", label=label)
    axes.set_xlabel(f"{_CAPACITY}, {_at(result)}")


def _mark_trained(axes: Axes, result: Result) -> None:
    """Marks the trained depth, and shades the depths beyond it."""
    depth, deepest = result["trained_depth"], max(row["depth"] for row in _all(result))
    axes.axvline(depth, color="0.5", ls=":", label="trained depth")
    if deepest > depth:
        axes.axvspan(depth, deepest + 0.2, color="0.9", zorder=0, label="beyond training")


def _bars(axes: Axes, rows: Sequence[Row], key: str, written: str) -> None:
    """Draws a bar for each task and mode, the first on top, with its number."""
    found = [(row["task"], row["mode"], row[key]) for row in rows if key in row]
    modes = [mode for mode in _LINES if any(mode == each for _, each, _ in found)]
    names = list(dict.fromkeys(name for name, _, _ in found))
    height = 0.8 / max(len(modes), 1)
    for at, mode in enumerate(modes):
        some = [(names.index(name) + at * height, x) for name, each, x in found if each == mode]
        label = mode if len(modes) > 1 else None
        places, widths = zip(*some, strict=True)
        bars = axes.barh(places, widths, height, color=_BARS[mode], label=label)
        axes.bar_label(bars, [written.format(x) for _, x in some], padding=3, fontsize=7)
    axes.set_yticks([i + height * (len(modes) - 1) / 2 for i in range(len(names))], names)
    axes.invert_yaxis()
