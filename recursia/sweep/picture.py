"""Draws the report of a sweep: needs matplotlib, of the extra `plot`."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from recursia.sweep import comparison
from recursia.sweep import points as trials
from recursia.sweep.comparison import Arm
from recursia.sweep.fits import Estimate, PowerLaw
from recursia.sweep.points import Point
from recursia.sweep.report import Report
from recursia.sweep.valleys import Family, Valley

Panel = Callable[[Axes], None]
_COLUMNS = 3
_MARKERS = "osD^vP*"
_DIVERGED: dict[str, Any] = {"marker": "x", "ls": "", "color": "crimson", "ms": 7, "mew": 1.8}
_TOP = 0.97  # of a panel's height, where diverged trials are marked
_DENSE = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)  # parts of a decade on a short axis
_PLACES = 8  # on an axis that are all written
_WIDE = 8  # ratio of numbers from which their axis is logarithmic
_LETTERS = 36  # of names on an axis, above which they are turned


def write(report: Report, title: str, path: pathlib.Path) -> None:
    """Writes the picture of a report, whose suffix says its format.

    Args:
      report: of the sweep.
      title: above all panels.
      path: of the picture; one that is there is replaced.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    with contextlib.ExitStack() as stack:
        stack.callback(part.unlink, missing_ok=True)
        stack.enter_context(matplotlib.rc_context({"svg.hashsalt": "recursia"}))
        draw(report, title).savefig(part, dpi=110)
        os.replace(part, path)


def draw(report: Report, title: str) -> Figure:
    """Returns the panels that the report calls for."""
    panels = _panels(report)
    columns = 2 if len(panels) == 4 else min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.9 * columns, 4.1 * rows + 0.5), layout="constrained")
    shared: dict[str, Axes] = {}
    for index, (kind, panel) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1, sharey=shared.get(kind))
        if kind:
            shared[kind] = axes
        panel(axes)
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    return figure


def _panels(report: Report) -> list[tuple[str, Panel]]:
    """Returns what draws each panel; panels of one kind have one loss axis."""
    loss = report.metric.replace("_", " ") + ", nats per token"
    panels: list[tuple[str, Panel]] = []
    for index, some in enumerate(report.families):
        kind = some[0].across.label
        if not index or some[0].across != report.families[index - 1][0].across:
            panels += [(kind, functools.partial(_valleys, family, loss)) for family in some]
            panels += [("", functools.partial(_least, some, loss))] if _are_several(some) else []
        panels += [("", functools.partial(_best, some))] if _are_several(some) else []
    if not panels:
        names = trials.varying(point.labels for point in report.points)
        labels = [name for name in names if name != trials.SEED]
        panels = [
            ("loss", functools.partial(_by_label, report.points, label, loss)) for label in labels
        ]
        panels = panels or [("loss", functools.partial(_by_label, *_alike(report.points), loss))]
    if any(arm.rate is not None for arm in report.arms):
        panels.append(("", functools.partial(_arms, report.arms, loss)))
    return panels


def _alike(points: Sequence[Point]) -> tuple[list[Point], str]:
    """Returns trials that no label tells apart but their seeds, and by what they are drawn."""
    if all(trials.SEED in point.labels for point in points):
        return list(points), trials.SEED
    return [dataclasses.replace(p, labels={"trial": p.name}) for p in points], "trial"


def _arms(arms: Sequence[Arm], loss: str, axes: Axes) -> None:
    """Draws a line for each model at its best learning rate: seeds, and the interval of the mean.

    Arms are compared seed by seed, so that intervals may overlap where the difference is no noise.
    """
    for line, arm in enumerate(reversed(arms)):
        half = [arm.loss.half if math.isfinite(arm.loss.half) else 0]
        axes.errorbar([arm.loss.value], [line], xerr=half, fmt="|", color="black", capsize=3, ms=12)
        axes.plot(list(arm.losses.values()), [line] * len(arm.losses), "o", color="C0", ms=4)
    names = [f"{arm.name}\n{comparison.rate(arm)}" for arm in reversed(arms)]
    axes.set_yticks(range(len(arms)), names, fontsize=8)
    axes.set(title="at the best rates, 95 %", xlabel=loss, ylim=(-0.6, len(arms) - 0.4))


def _are_several(families: Sequence[Family]) -> bool:
    """Returns whether there is anything to draw along the second axis."""
    return any(len(family.valleys) > 1 for family in families)


def _valleys(family: Family, loss: str, axes: Axes) -> None:
    """Draws the losses of trials across an axis, and their parabolas."""
    for index, valley in enumerate(family.valleys):
        color = _color(index, len(family.valleys))
        x = family.across.value
        told = [(x(point), point.loss) for point in valley.points if not point.is_diverged]
        name = _short(valley.at) if len(family.valleys) > 1 else None
        if told:
            marker = _MARKERS[index % len(_MARKERS)]
            axes.plot(*zip(*told, strict=True), marker, color=color, ms=4, alpha=0.75, label=name)
        if valley.fit:
            span = np.geomspace(min(told)[0], max(told)[0], 100)
            axes.plot(span, valley.fit.at(span), color=color, lw=1.5)
            how = {"color": color, "mec": "black", "ms": 12, "capsize": 3, "zorder": 5}
            _estimate(axes, valley.fit.best, valley.fit.least, fmt="*", **how)
    _mark_diverged(axes, [(family.across.value(p), p) for v in family.valleys for p in v.points])
    _logarithmic(axes, family.across.words)
    axes.set(title=family.name, ylabel=loss)
    _legend(axes, 5, title=family.along.words if len(family.valleys) > 1 else None)


def _legend(axes: Axes, columns: int, **how: Any) -> None:
    """Writes below a panel what its colours mean."""
    if names := axes.get_legend_handles_labels()[1]:
        how |= {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "frameon": False}
        how |= {"columnspacing": 0.9, "handletextpad": 0.1} if columns > 3 else {}
        axes.legend(fontsize=9, ncols=min(columns, len(names)), **how)


def _mark_diverged(axes: Axes, points: Sequence[tuple[float, Point]]) -> None:
    """Marks trials that diverged at the top of a panel, where they have no loss."""
    if xs := [x for x, point in points if point.is_diverged]:
        heights = [_TOP] * len(xs)
        transform = axes.get_xaxis_transform()
        axes.plot(xs, heights, transform=transform, clip_on=False, label="diverged", **_DIVERGED)


def _least(families: Sequence[Family], loss: str, axes: Axes) -> None:
    """Draws the least losses along an axis, and their power laws."""
    _along(axes, families, lambda valley: valley.fit and valley.fit.least, lambda f: f.least)
    axes.set(title="least loss", ylabel=loss)


def _best(families: Sequence[Family], axes: Axes) -> None:
    """Draws the places of the least losses along an axis, and their power laws."""
    _along(axes, families, lambda valley: valley.fit and valley.fit.best, lambda f: f.best)
    words = families[0].across.words
    if axes.lines:
        axes.set_yscale("log")
        _ticks(axes.yaxis)
    axes.set(title=f"{words} of the least loss", ylabel=words)


def _along(
    axes: Axes,
    families: Sequence[Family],
    estimate: Callable[[Valley], Estimate | None],
    law_of: Callable[[Family], PowerLaw | None],
) -> None:
    for index, family in enumerate(families):
        how = {"fmt": _MARKERS[index % len(_MARKERS)], "color": f"C{index}"}
        law = law_of(family)
        label = family.name
        if law is not None:
            label += f": exponent {law.exponent:.3f}"
            ends = [valley.at for valley in family.valleys]
            span = np.geomspace(min(ends), max(ends), 100)
            axes.plot(span, law.at(span), color=f"C{index}", lw=1.2)
        for valley in family.valleys:
            if (found := estimate(valley)) is not None:
                aside = 1 + 0.03 * (index - (len(families) - 1) / 2)  # intervals do not overlap
                place = Estimate(valley.at * aside)
                _estimate(axes, place, found, **how, capsize=3, ms=6, label=label)
                label = None
    if not axes.lines:
        middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "no fit has a minimum\nwithin what was tried", **middle)
        axes.set(xticks=[], yticks=[])
        return
    _logarithmic(axes, families[0].along.words)
    places = sorted({valley.at for family in families for valley in family.valleys})
    names = {_short(place): place for place in places}
    if len(names) <= _PLACES:
        axes.set_xticks(list(names.values()), list(names))
    axes.set_xlim(places[0] / 1.15, places[-1] * 1.15)
    _legend(axes, 1)


def _estimate(axes: Axes, x: Estimate, y: Estimate, **how: Any) -> None:
    """Draws a point with its intervals."""
    errors = {"xerr": _error(x), "yerr": _error(y)}
    axes.errorbar([x.value], [y.value], **errors, elinewidth=1.2, **how)


def _error(of: Estimate) -> list[list[float]] | None:
    """Returns how far an interval reaches below and above."""
    if of.low is None or of.high is None:
        return None
    return [[max(of.value - of.low, 0)], [max(of.high - of.value, 0)]]


def _by_label(points: Sequence[Point], label: str, loss: str, axes: Axes) -> None:
    """Draws the losses of all trials by one label, and the means over the others."""
    values = {repr(value): value for p in points if (value := p.labels.get(label)) is not None}
    ordered = sorted(values.values(), key=trials.order)
    is_number = all(map(trials.is_number, ordered))
    place = {repr(v): v if is_number else i for i, v in enumerate(ordered)}
    kept = [(place[repr(v)], p) for p in points if repr(v := p.labels.get(label)) in place]
    told = [(x, point.loss) for x, point in kept if not point.is_diverged]
    if told:
        means = [(x, np.mean([y for other, y in told if other == x])) for x in dict(told)]
        axes.plot(*zip(*told, strict=True), "o", color="C0", ms=5, alpha=0.6, label="trials")
        axes.plot(*zip(*means, strict=True), "_", color="black", ms=18, mew=2, label="mean")
    _mark_diverged(axes, kept)
    _legend(axes, 3)
    words = label.replace("_", " ")
    axes.set(title=f"loss by {words}", xlabel=words, ylabel=loss)
    if not is_number:
        _name_ticks(axes, list(map(str, ordered)))
    elif ordered[0] > 0 and ordered[-1] >= _WIDE * ordered[0]:
        _logarithmic(axes, words)
    elif all(isinstance(value, int) for value in ordered):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    is_long = len(", ".join(names)) > _LETTERS
    how: dict[str, Any] = {"rotation": 30, "ha": "right"} if is_long else {}
    axes.set_xticks(range(len(names)), names, **how)
    axes.set_xlim(-0.5, len(names) - 0.5)


def _logarithmic(axes: Axes, words: str) -> None:
    axes.set_xscale("log")
    _ticks(axes.xaxis)
    axes.set_xlabel(words)


def _ticks(axis: Any) -> None:
    """Writes decades, their 1, 2 and 5, or more of its parts, so that a few numbers are there."""
    low, high = sorted(axis.get_view_interval())
    ratio = high / max(low, 1e-300)
    parts = (1.0,) if ratio > 1e3 else (1.0, 2.0, 5.0) if ratio > 8 else _DENSE
    locator = LogLocator(10, parts) if ratio > 2 else MaxNLocator(4)
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    """Returns a number in a few characters: 24, 0.003, 1.5k, 2e+10."""
    if value and not 1e-4 <= abs(value) < 1e9:
        return f"{value:.3g}"
    power = min(2, max(0, math.floor(math.log10(abs(value) or 1) / 3)))
    return f"{value / 1000**power:.3g}{('', 'k', 'M')[power]}"


def _color(index: int, count: int) -> Any:
    """Returns a colour of a scale, as the valleys of a family are in order."""
    return matplotlib.colormaps["viridis"](0.85 * index / max(count - 1, 1))
