"""Panels of how routers choose, from step to step and over neighbouring tokens; and memories."""

from typing import Any

import numpy as np

from recursia.evaluate import memories, probes
from recursia.evaluate.memories import Memory
from recursia.evaluate.traces import Trace
from recursia.report.panels import COLORS, Panel, legend, plot, source
from recursia.report.reading import Reading


def panels(reading: Reading) -> list[Panel]:
    """Returns the panels of the routers and memories that leave a choice and tell steps apart."""
    found = []
    for slot, trace in reading.traces.items():
        if trace.is_choice and trace.is_by_step:
            found += _of_router(slot, trace)
    for slot, memory in reading.memories.items():
        if memory.is_by_step:
            found += _of_memory(slot, memory)
    if reading.has_choice:
        used = np.where(reading.is_token, reading.depth_used, 0)
        depth = probes.of_depth(used, None, reading.num_recursions)
        found.append(_consistency("recursions", depth))
    return [panel for panel in found if panel is not None]


def _of_router(slot: str, trace: Trace) -> list[Panel | None]:
    found = probes.of_router(trace)
    return [_affinity(slot, found), _consistency(slot, found), _margin(slot, found)]


def _of_memory(slot: str, memory: Memory) -> list[Panel | None]:
    found = memories.statistics(memory)
    return [_used(slot, found), _overlap(slot, found), _consistency(slot, found)]


def _used(slot: str, found: dict[str, Any]) -> Panel:
    values, chance = found["used"], found["used_by_chance"]
    drawn = _beside("step", "share of values", range(1, len(values) + 1), values, chance)
    caption = (
        f"Share of the {found['values']:,} values that some token reads, beside that of as many "
        f"reads drawn evenly. No step reads {found['unread']:,} of them. The divergence of the use "
        f"of values from even use is {max(found['kl_nats']):.2f} nats at most, of "
        f"{np.log(found['values']):.2f} that are possible."
    )
    return Panel(f"used_{_id(slot)}", f"Values in use: {_words(slot)}", caption, drawn)


def _overlap(slot: str, found: dict[str, Any]) -> Panel | None:
    if not (values := found["overlap"]):
        return None
    places, chance = range(2, len(values) + 2), found["overlap_by_chance"]
    drawn = _beside("step", "share of reads", places, values, chance)
    caption = (
        "Share of the values that a token reads in a step which it read in the one before too, "
        "beside reads dealt to tokens at random."
    )
    return Panel(f"overlap_{_id(slot)}", f"Values read again: {_words(slot)}", caption, drawn)


def _affinity(slot: str, found: dict[str, Any]) -> Panel | None:
    if not (nats := found["affinity_nats"]):
        return None
    caption = (
        "Mutual information of a token's choices in a step and in the one before, beside that of "
        f"choices dealt to tokens at random; at most {np.log(found['experts']):.2f} nats."
    )
    drawn = _beside("step", "nats", range(2, len(nats) + 2), nats, found["affinity_nats_by_chance"])
    return Panel(f"affinity_{_id(slot)}", f"Expert affinity: {_words(slot)}", caption, drawn)


def _consistency(slot: str, found: dict[str, Any]) -> Panel | None:
    if not (rows := found["consistency"]):
        return None
    column = lambda name: [row[name] for row in rows]
    lengths, chance = column("segment"), column("srp_by_chance")
    drawn = _beside("tokens of a segment", "F1", lengths, column("srp"), chance, x_axis_type="log")
    drawn.xaxis.ticker = lengths
    caption = (
        "How well one set of choices serves a whole segment of consecutive tokens (SRP), beside "
        "choices dealt to tokens at random. Above it, neighbours choose alike."
    )
    title = f"Local routing consistency: {_words(slot)}"
    return Panel(f"consistency_{_id(slot)}", title, caption, drawn)


def _margin(slot: str, found: dict[str, Any]) -> Panel | None:
    rows = [(step, *q) for step, q in enumerate(found["margin"], 1) if q]
    if not rows:
        return None
    step, low, middle, high = np.array(rows).T
    hover = [("step", "@x"), ("median", "@y{0.000}"), ("10 to 90 %", "@low{0.000} @high{0.000}")]
    drawn = plot("step", "logits", hover)
    data = source({"x": step, "low": low, "y": middle, "high": high})
    drawn.segment("x", "low", "x", "high", source=data, color=COLORS[0], line_width=3, alpha=0.4)
    drawn.scatter("x", "y", source=data, color=COLORS[0], size=8)
    caption = (
        "Logit of the weakest expert that a token takes minus that of the strongest that it does "
        "not: median, and from 10 % to 90 % of tokens. Near 0 a little noise changes the choice."
    )
    return Panel(f"margin_{_id(slot)}", f"Margin of the choice: {_words(slot)}", caption, drawn)


def _beside(x: str, y: str, places: Any, values: Any, chance: Any, **how: Any) -> Any:
    """Returns a line of values, and a dashed one of what chance gives."""
    drawn = plot(x, y, [(x, "@x"), ("", "@y{0.000}")], **how)
    for name, line, color, dash in (
        ("measured", values, COLORS[0], "solid"),
        ("by chance", chance, COLORS[7], "dashed"),
    ):
        data = source({"x": list(places), "y": line})
        how = {"source": data, "color": color, "legend_label": name}
        drawn.line("x", "y", line_dash=dash, **how)
        drawn.scatter("x", "y", size=6, **how)
    drawn.y_range.start = 0
    legend(drawn)
    return drawn


def _id(slot: str) -> str:
    return slot.replace(" ", "_")


def _words(slot: str) -> str:
    return slot.replace("_", " ")
