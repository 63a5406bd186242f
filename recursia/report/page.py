"""The page: what the report found, in one file of HTML with all that it needs inside."""

import importlib.resources
import json
import time
from collections.abc import Sequence
from typing import Any

import jinja2
from bokeh.embed import json_item
from bokeh.resources import Resources
from bokeh.themes import Theme
from markupsafe import Markup

from recursia.report import comparison, curves, depth, routing, text
from recursia.report.panels import COLORS, Panel
from recursia.report.reading import Reading
from recursia.report.record import Record
from recursia.report.summary import summary
from recursia.report.verdict import verdict

_FILES = importlib.resources.files("recursia.report") / "page"


def page(
    records: Sequence[Record], reading: Reading | None, absent: str, is_watched: bool = False
) -> str:
    """Returns the report as HTML.

    Args:
      records: of the run, and of those that it is compared with.
      reading: of the run's checkpoint; None if there is none.
      absent: why there is none, in a sentence.
      is_watched: whether the page is to load itself again when it has changed.
    """
    first = records[0]
    word, sentence = verdict(first)
    trained = [p for p in (curves.curves(records) if any(r.training for r in records) else [])]
    compared = comparison.comparison(records)
    read = []
    if reading:
        read = [text.panel(reading), *depth.panels(reading), *routing.panels(reading)]
    over = curves.by_recursion(first)
    about = _about(reading) if reading else ""
    sections = [("run", "What was run"), ("training", "Training"), ("comparison", "Comparison")]
    sections += [("depth", "Depth"), ("samples", "Samples")]
    found = summary(first)
    has = {"training": trained, "comparison": compared, "samples": found.samples}
    panels = [*trained, *(compared.panels if compared else ()), *read, *over]
    return _template().render(
        title=", ".join(record.name for record in records),
        word=word,
        verdict=sentence,
        sections=[each for each in sections if has.get(each[0], True)],
        summary=found,
        curves=trained,
        lengths=curves.lengths_of(records),
        has_bits=any(record.tokens_per_byte for record in records),
        runs=[(record.name, COLORS[i % len(COLORS)]) for i, record in enumerate(records)],
        compared=compared,
        absent=absent,
        about_reading=about,
        depth=read,
        over_training=over,
        footer=f"Written by recursia report on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}"
        f" from {', '.join(str(record.workdir) for record in records)}.",
        library=Markup(_library()),
        plots=Markup(_plots(panels)),
        style=Markup(_file("page.css")),
        script=Markup(_file("page.js")),
        reload=Markup(_file("reload.js")),
        is_watched=is_watched,
    )


def _about(reading: Reading) -> str:
    tokens = int(reading.is_token.sum())
    return (
        f"What the checkpoint of step {reading.step:,} makes of {tokens:,} tokens of the "
        "validation text, routed as published."
    )


def _plots(panels: Sequence[Panel]) -> str:
    """Returns the plots by name as JSON that no text in it can end."""
    plain = Theme(json={})
    items = {p.name: json_item(p.plot, theme=plain) for p in panels if p.plot is not None}
    return json.dumps(items).replace("<", "\\u003c").replace("&", "\\u0026")


def _library() -> str:
    """Returns the source of the library that draws the plots."""
    found = Resources(mode="inline", components=["bokeh"], minified=True).js_raw
    return "\n".join(found).replace("</script", "<\\/script")


def _file(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    filters: dict[str, Any] = {"duration": _duration, "after": _after}
    environment.filters.update(filters)
    return environment.from_string(_file("page.html.jinja"))


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _after(text: str, prompt: str) -> str:
    """Returns a sample without its prompt, if it begins with it."""
    return text.removeprefix(prompt)
