"""`recursia presets`: lists the shipped configurations."""

import argparse
import json
import textwrap
from typing import Any

from recursia import arguments, parsing

INDENT = " " * 13
ABOUT = "The shipped configurations, or the presets of one."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    about = "a shipped configuration's name; default: all of them"
    name: Any = parser.add_argument("name", nargs="?", metavar="NAME", help=about)
    name.completer = arguments.shipped
    arguments.json_option(parser)


def run(given: argparse.Namespace) -> None:
    """Prints the shipped configurations, or the presets of one with what they cost."""
    from recursia import presets

    if given.name:
        rows = [_preset(name) for name in presets.presets(given.name)]
        print(json.dumps({"presets": rows}) if given.json else _table(rows))
        return
    every = {name: _system(name) for name in presets.shipped()}
    if given.json:
        print(json.dumps(every))
        return
    for name, of in every.items():
        print(f"{name:12} {of['about']}")
        named = " ".join(each.partition(":")[2] for each in of["presets"])
        for line in (named, f"checked against: {of['checked_against']}"):
            print(textwrap.fill(line, 100, initial_indent=INDENT, subsequent_indent=INDENT))


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    if given.name:
        return arguments.command("fields") + f" {given.name}:PRESET"
    return arguments.command("presets") + " NAME"


def _system(name: str) -> dict[str, Any]:
    from recursia import presets

    return {
        "about": presets.about(name),
        "presets": presets.presets(name),
        "checked_against": presets.checked_against(name),
    }


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
