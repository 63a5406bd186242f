"""Verbs that show what there is: presets, fields."""

import argparse
import dataclasses
import json
import textwrap
from typing import Any

WIDTH = 100  # characters


def presets(options: argparse.Namespace) -> None:
    """Prints the shipped configurations, or the presets of one with what they cost."""
    from recursia import presets

    if options.name:
        rows = [_preset(name) for name in presets.presets(options.name)]
        print(json.dumps({"presets": rows}) if options.json else _table(rows))
        return
    every = {
        name: {"about": presets.about(name), "presets": presets.presets(name)}
        for name in presets.shipped()
    }
    if options.json:
        print(json.dumps(every))
        return
    for name, of in every.items():
        print(f"{name:12} {of['about']}")
        print(_indented(" ".join(each.partition(":")[2] for each in of["presets"]), 13))


def _preset(name: str) -> dict[str, Any]:
    from recursia import accounting, budget, config

    run = config.load(name, {})
    return {
        "config": name,
        "parameters": accounting.unique_parameters(run.model.sized(budget.vocab_size(run))),
        "layers": run.model.num_layers,
        "topology": run.topology,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    width = max(len(row["config"]) for row in rows)
    lines = [f"{'':{width}}  {'parameters':>14}  {'layers':>6}  machine"]
    for row in rows:
        lines.append(
            f"{row['config']:{width}}  {row['parameters']:14,}  {row['layers']:6}  "
            f"{row['topology'] or 'any'}"
        )
    return "\n".join(lines)


def fields(options: argparse.Namespace) -> None:
    """Prints every field of a configuration: its value, type, default and meaning."""
    from recursia import config, fields

    run = config.load(options.config, options.overrides)
    found = fields.fields(run, options.prefix)
    if options.json:
        print(json.dumps({"fields": [dataclasses.asdict(field) for field in found]}))
        return
    for field in found:
        default = (
            "must be set" if field.default == "required" else f"default {_shown(field.default)}"
        )
        print(f"{field.path} = {_shown(field.value)}")
        print(_indented(f"{field.meaning} Takes {field.type}; {default}.", 4))


def _shown(value: Any) -> str:
    """Returns a value as it may be typed."""
    if isinstance(value, str):
        return value or '""'
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, tuple) else str(value)


def _indented(text: str, by: int) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=" " * by, subsequent_indent=" " * by)
