"""Panels: a plot or a piece of HTML with its title and a caption, in one look."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
from bokeh.plotting import figure
from markupsafe import Markup

# Of Okabe and Ito: told apart by colour-blind readers, and in a grey print by their order.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#444444")
MOST = 600  # points of a curve
HEIGHT = 300  # pixels of a plot
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
    if hover:
        drawn.add_tools(HoverTool(tooltips=list(hover)))
    return drawn


def legend(drawn: Any, place: str = "top_right") -> None:
    """Lets a click on a name hide or show what it stands for."""
    if not drawn.legend:
        return
    for each in drawn.legend:
        each.location, each.click_policy = place, "hide"
        each.background_fill_alpha, each.border_line_color = 0.75, None
        each.label_text_font_size, each.spacing, each.padding = "11px", 0, 3
        each.glyph_height = each.label_height = 14


def source(columns: Mapping[str, Sequence[Any] | np.ndarray]) -> Any:
    """Returns columns for a plot; numbers become float32, and at most `MOST` points stay."""
    found = {name: np.asarray(values) for name, values in columns.items()}
    count = max(map(len, found.values()), default=0)
    at = np.unique(np.linspace(0, count - 1, min(count, MOST)).round().astype(int))
    small = lambda x: x.astype(np.float32) if x.dtype.kind in "fiu" else x
    return ColumnDataSource({name: small(values[at]) for name, values in found.items()})


def smoothed(values: Sequence[float]) -> np.ndarray:
    """Returns the exponential mean of values over about 4 % of them, unbiased at the start."""
    decay = 1 - 1 / max(1.0, len(values) / 25)
    total, weight, found = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1
        found.append(total / weight if weight else math.nan)
    return np.array(found)


def percent(axis: Any) -> None:
    """Labels an axis of shares in percent."""
    axis.formatter = NumeralTickFormatter(format="0 %")
