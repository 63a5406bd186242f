"""Panels of what a model does with its depth, from a reading of held-out text."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColorBar, FactorRange, LinearColorMapper
from bokeh.palettes import Blues256

from recursia.evaluate import probes
from recursia.report.panels import COLORS, Panel, legend, percent, plot, source
from recursia.report.reading import KINDS, Reading

_BINS = 32  # of positions, and of a histogram of scores
_FREQUENCIES = 10
_MOST = 8  # recursions with a histogram of their own
_BAR: dict[str, Any] = {"color": COLORS[0], "height": 0.7, "line_color": None}


def panels(reading: Reading) -> list[Panel]:
    """Returns the panels that apply to the model that was read."""
    found = [_by_recursion(reading), _change(reading)]
    if reading.has_choice:
        found += [_used(reading), _surprise(reading), _by_position(reading), _by_kind(reading)]
        found += [_by_frequency(reading), *_scores(reading)]
    found += [_load(name, shares) for name, shares in reading.loads.items()]
    return [panel for panel in found if panel is not None]


def _by_recursion(reading: Reading) -> Panel | None:
    if reading.lens is None or len(reading.lens) < 2:
        return None
    means = reading.lens[:, reading.is_token].mean(-1)
    drawn = plot("recursion", "nats per token", [("recursion", "@x"), ("loss", "@y{0.0000}")])
    data = source({"x": np.arange(1, len(means) + 1), "y": means})
    drawn.line("x", "y", source=data, color=COLORS[0], line_width=1.6)
    drawn.scatter("x", "y", source=data, color=COLORS[0], size=8)
    drawn.xaxis.ticker = _ticks(len(means))
    caption = "The state after each recursion, read as the model reads its last."
    return Panel("loss_by_recursion", "Loss after each recursion", caption, drawn)


def _change(reading: Reading) -> Panel | None:
    if reading.change is None or not len(reading.change):
        return None
    taken = reading.is_taken[1:]
    each = [c[t] for c, t in zip(reading.change, taken, strict=False)]
    rows = [(r, c) for r, c in enumerate(each, 2) if len(c)]
    if not rows:
        return None
    low, middle, high = np.array([np.quantile(c, (0.25, 0.5, 0.75)) for _, c in rows]).T
    data = source({"x": [r for r, _ in rows], "low": low, "y": middle, "high": high})
    hover = [
        ("recursion", "@x"),
        ("median", "@y{0.000}"),
        ("quartiles", "@low{0.000} @high{0.000}"),
    ]
    drawn = plot("recursion", "change over norm", hover)
    drawn.segment("x", "low", "x", "high", source=data, color=COLORS[0], line_width=3, alpha=0.4)
    drawn.scatter("x", "y", source=data, color=COLORS[0], size=8)
    drawn.line("x", "y", source=data, color=COLORS[0])
    drawn.y_range.start = 0
    drawn.xaxis.ticker = [r for r, _ in rows] if len(rows) <= 12 else _ticks(rows[-1][0])
    caption = (
        "Distance between the states before and after a recursion over the norm of the state "
        "before, of the tokens that take it: median and quartiles. A fixed point has 0."
    )
    return Panel("change", "Change of the state in each recursion", caption, drawn)


def _depths(reading: Reading) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the depths that tokens used, how many used each, and what came after them cost."""
    used, nats = reading.depth_used[reading.is_token], reading.nats[reading.is_token]
    depths = np.unique(used)
    counts = np.array([(used == depth).sum() for depth in depths])
    return depths, counts, np.array([nats[used == depth].mean() for depth in depths])


def _bars(x: str, values: Sequence[float] | np.ndarray, names: list[str], **columns: Any) -> Any:
    """Returns horizontal bars, the first on top."""
    hover = [("", "@name"), (x, "@x{0.000}"), ("tokens", "@tokens{0,0}")]
    height = max(160, 60 + 34 * len(names))
    drawn = plot(x, "", hover, y_range=FactorRange(factors=names[::-1]), height=height)
    data = source({"x": np.asarray(values), "name": np.array(names), **columns})
    drawn.hbar(y="name", right="x", source=data, **_BAR)
    drawn.x_range.start = 0
    drawn.ygrid.grid_line_color = None
    return drawn


def _used(reading: Reading) -> Panel:
    depths, counts, _ = _depths(reading)
    drawn = _bars("share of tokens", counts / counts.sum(), list(map(str, depths)), tokens=counts)
    drawn.yaxis.axis_label = "recursions"
    percent(drawn.xaxis)
    mean = (depths * counts).sum() / counts.sum()
    caption = f"A token takes {mean:.2f} recursions on average, of {reading.num_recursions}."
    return Panel("used", "Recursions that tokens use", caption, drawn)


def _surprise(reading: Reading) -> Panel:
    depths, counts, nats = _depths(reading)
    drawn = _bars("nats of the next token", nats, list(map(str, depths)), tokens=counts)
    drawn.yaxis.axis_label = "recursions"
    caption = (
        "Mean surprise of the token that comes next, by the recursions that were spent on "
        "predicting it."
    )
    return Panel("surprise_by_depth", "Surprise by recursions used", caption, drawn)


def _by_position(reading: Reading) -> Panel:
    length = reading.tokens.shape[1]
    bins = min(_BINS, length)
    place = np.broadcast_to(np.arange(length) * bins // length, reading.tokens.shape)
    x, y, tokens = _means(place, reading, bins)
    hover = [("position", "@x{0}"), ("recursions", "@y{0.000}"), ("tokens", "@tokens{0,0}")]
    drawn = plot("position in the sequence", "recursions per token", hover)
    drawn.line("x", "y", source=source({"x": (x + 0.5) * length / bins, "y": y, "tokens": tokens}))
    return Panel("by_position", "Recursions by position", "", drawn)


def _by_kind(reading: Reading) -> Panel:
    x, y, tokens = _means(reading.kinds, reading, len(KINDS))
    order = np.argsort(-y)
    names = [KINDS[int(x[i])] for i in order]
    drawn = _bars("recursions per token", y[order], names, tokens=tokens[order])
    return Panel("by_kind", "Recursions by kind of token", "", drawn)


def _by_frequency(reading: Reading) -> Panel | None:
    counts = np.maximum(reading.counts, 1)
    ids = np.unique(reading.tokens[reading.is_token])
    bins = min(_FREQUENCIES, len(ids))
    edges = np.quantile(np.log(counts[reading.is_token]), np.linspace(0, 1, bins + 1)[1:-1])
    group = np.searchsorted(np.unique(edges), np.log(counts), side="right")
    x, y, tokens = _means(group, reading, bins + 1)
    if len(x) < 2:
        return None
    total = counts[reading.is_token]
    mean = [math.exp(np.log(total[group[reading.is_token] == i]).mean()) for i in x]
    hover = [("occurs", "@x{0,0}"), ("recursions", "@y{0.000}"), ("tokens", "@tokens{0,0}")]
    drawn = plot("occurrences of the token", "recursions per token", hover, x_axis_type="log")
    data = source({"x": mean, "y": y, "tokens": tokens})
    drawn.line("x", "y", source=data, color=COLORS[0])
    drawn.scatter("x", "y", source=data, color=COLORS[0], size=7)
    where = "the training text" if reading.is_of_training else "the text that was read"
    caption = f"Tokens in groups of about equal size, by how often they occur in {where}."
    return Panel("by_frequency", "Recursions by frequency", caption, drawn)


def _means(
    group: np.ndarray, reading: Reading, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the groups with tokens, their recursions per token, and their numbers of tokens."""
    at = group[reading.is_token]
    tokens = np.bincount(at, minlength=size)
    total = np.bincount(at, reading.depth_used[reading.is_token], minlength=size)
    there = np.flatnonzero(tokens)
    return there, total[there] / tokens[there], tokens[there]


def _scores(reading: Reading) -> list[Panel]:
    """Returns histograms of the scores of tokens that go beyond a recursion, and of others."""
    found, used = [], np.where(reading.is_token, reading.depth_used, 0)
    for recursion in range(len(reading.scores) if reading.scores is not None else 0):
        scores = reading.scores[recursion]  # pyright: ignore[reportOptionalSubscript]
        if divided := probes.divided(used, scores, recursion):
            found.append(_histogram(recursion, *divided))
    return found[:_MOST]


def _histogram(recursion: int, way: str, yes: np.ndarray, no: np.ndarray) -> Panel:
    low, high = np.quantile(np.concatenate([yes, no]), (0.002, 0.998))
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    hover = [("score", "@x{0.000}"), ("tokens", "@tokens{0,0}")]
    drawn = plot("score", "share of tokens", hover)
    total = len(yes) + len(no)
    for values, label, color in ((yes, way, COLORS[0]), (no, f"do not {way}", COLORS[1])):
        tokens, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        columns = {"left": edges[:-1], "right": edges[1:], "y": tokens / total, "tokens": tokens}
        data = source({**columns, "x": (edges[:-1] + edges[1:]) / 2})
        how = {"color": color, "alpha": 0.55, "line_color": None, "legend_label": label}
        drawn.quad(left="left", right="right", bottom=0, top="y", source=data, **how)
    drawn.y_range.start = 0
    percent(drawn.yaxis)
    legend(drawn)
    share = probes.separation(yes, no)
    caption = (
        f"Of two tokens of which one is to {way} recursion {recursion + 1}, that one has the "
        f"higher score in {share:.1%} of all pairs. 50 % would tell nothing apart; less, where a "
        "high score ends a token."
    )
    title = f"Scores of recursion {recursion + 1}"
    return Panel(f"scores_{recursion + 1}", title, caption, drawn)


def _load(name: str, shares: np.ndarray) -> Panel:
    count, experts = shares.shape
    mapper = LinearColorMapper(palette=Blues256[::-1], low=0, high=max(2 / experts, shares.max()))
    hover = [("recursion", "@y"), ("expert", "@x"), ("share", "@share{0.0 %}")]
    height = max(170, 110 + min(26 * count, 320))
    drawn = plot("expert", "recursion", hover, height=height)
    x, y = np.meshgrid(np.arange(experts), np.arange(1, count + 1))
    data = {"x": x.ravel(), "y": y.ravel(), "share": shares.ravel()}
    fill: Any = {"field": "share", "transform": mapper}
    drawn.rect("x", "y", 0.95, 0.9, source=_all(data), fill_color=fill, line_color=None)
    bar = ColorBar(color_mapper=mapper, width=8, title="share")
    percent(bar)
    drawn.add_layout(bar, "right")
    drawn.y_range.flipped = True
    drawn.grid.grid_line_color = None
    drawn.yaxis.ticker = _ticks(count)
    even = f"Choices of each expert; evenly spread, each has {1 / experts:.1%}."
    return Panel(
        f"load_{name.replace(' ', '_')}", f"Expert load: {name.replace('_', ' ')}", even, drawn
    )


def _all(columns: dict[str, np.ndarray]) -> Any:
    """Returns all points, however many."""
    made = source({})
    made.data = {name: values.astype(np.float32) for name, values in columns.items()}
    return made


def _ticks(count: int) -> list[int]:
    """Returns the numbers of recursions on an axis: all of few, or about ten."""
    return list(range(1, count + 1, max(1, round(count / 10))))
