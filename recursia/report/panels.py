"""Panels: a plot or a piece of HTML with its title and a caption, in one look."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import (
    CategoricalAxis,
    ColumnDataSource,
    CustomJSTickFormatter,
    HoverTool,
    LogAxis,
    LogTicker,
    NumeralTickFormatter,
)
from bokeh.plotting import figure
from markupsafe import Markup

# Of Okabe and Ito: told apart by colour-blind readers, and in a grey print by their order.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#444444")
MOST = 600  # points of a curve
HEIGHT = 300  # pixels of a plot
_MOST_LINES = 8  # of one plot with a line for each recursion
# A number in a few characters: 24, 0.003, 1.5 k, 20 G.
_SHORT = """
const size = Math.abs(tick);
if (size && (size < 1e-4 || size >= 1e27)) return tick.toExponential(1);
const power = Math.max(0, Math.floor(Math.log10(size || 1) / 3 + 1e-9));
const scaled = Number((tick / 1000 ** power).toPrecision(5));
return power ? `${scaled} ${"kMGTPEZY"[power - 1]}` : `${scaled}`;
"""
_TOOLS = "pan,box_zoom,wheel_zoom,reset,save"


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture of the page.

    Attributes:
      name: unique on the page.
      title: what is shown, in a few words.
      caption: what to read from it, and how it was computed.
      plot: of bokeh; None for a panel of HTML.
      html: shown instead of a plot.
      x: "length" where the reader may choose what the curves are drawn against.
      y: "loss" where the reader may choose nats per token or bits per byte.
    """

    name: str
    title: str
    caption: str = ""
    plot: Any = None
    html: Markup | None = None
    x: str = ""
    y: str = ""


def plot(x: str, y: str, hover: Sequence[tuple[str, str]] = (), **how: Any) -> Any:
    """Returns an empty plot.

    Args:
      x: label of the horizontal axis.
      y: label of the vertical axis.
      hover: what is shown of the point under the pointer: names, and columns such as "@x".
      how: other arguments of `bokeh.plotting.figure`.
    """
    drawn: Any = figure(
        height=how.pop("height", HEIGHT),
        sizing_mode="stretch_width",
        tools=_TOOLS,
        active_drag=None,  # a finger that scrolls the page would draw on it; see page.js
        active_scroll=None,
        toolbar_location="above",
        x_axis_label=x,
        y_axis_label=y,
        output_backend="canvas",
        **how,
    )
    drawn.toolbar.logo = None
    drawn.toolbar.autohide = False
    drawn.outline_line_color = None
    drawn.grid.grid_line_color = "#e6e6e6"
    drawn.axis.minor_tick_line_color = None
    drawn.axis.axis_line_color = "#999999"
    drawn.axis.axis_label_text_font_style = "normal"
    short(drawn.xaxis)
    short(drawn.yaxis)
    if hover:
        drawn.add_tools(HoverTool(tooltips=list(hover)))
    return drawn


def short(axis: Any) -> None:
    """Labels an axis of numbers in a few characters each."""
    if not isinstance(axis[0], CategoricalAxis):
        axis.formatter = CustomJSTickFormatter(code=_SHORT)
    if isinstance(axis[0], LogAxis):
        axis.ticker = LogTicker(mantissas=[1, 2, 5], desired_num_ticks=6)


def legend(drawn: Any) -> None:
    """Puts the names below the plot; a click on one hides or shows what it stands for."""
    if not drawn.legend:
        return
    (names,) = drawn.legend
    names.click_policy, names.border_line_color = "hide", None
    names.label_text_font_size, names.spacing, names.padding, names.margin = "12px", 2, 2, 2
    names.location, names.glyph_height = "center", 16
    names.label_height = 16
    longest = max(len(item.label.value) for item in names.items)
    names.ncols = min(len(names.items), 4 if longest < 13 else 2 if longest < 26 else 1)
    drawn.height += 20 * -(-len(names.items) // names.ncols)
    drawn.add_layout(names, "below")


def source(columns: Mapping[str, Sequence[Any] | np.ndarray], most: int = MOST) -> Any:
    """Returns columns for a plot; numbers become float32, and at most `most` points stay."""
    found = {name: np.asarray(values) for name, values in columns.items()}
    count = max(map(len, found.values()), default=0)
    at = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
    small = lambda x: x.astype(np.float32) if x.dtype.kind in "fiu" else x
    return ColumnDataSource({name: small(values[at]) for name, values in found.items()})


def smoothed(values: Sequence[float]) -> np.ndarray:
    """Returns means of values over their neighbours, about 4 % of all, with Gaussian weights."""
    y = np.asarray(values, float)
    width = max(len(y) / 100, 0.5)
    offsets = np.arange(-math.ceil(3 * width), math.ceil(3 * width) + 1)
    weights = np.exp(-((offsets / width) ** 2) / 2)
    is_known = np.isfinite(y)
    middle = slice(len(offsets) // 2, len(offsets) // 2 + len(y))
    summed = lambda x: np.convolve(x, weights)[middle]
    total, weight = summed(np.where(is_known, y, 0.0)), summed(is_known.astype(float))
    return np.where(weight > 0, total / np.maximum(weight, 1e-12), np.nan)


def spread(count: int) -> list[int]:
    """Returns the indices of some recursions, from the first to the last: all of a few."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, _MOST_LINES))})


def percent(axis: Any) -> None:
    """Labels an axis of shares in percent."""
    axis.formatter = NumeralTickFormatter(format="0 %")
