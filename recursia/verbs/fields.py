"""`recursia fields`: lists the fields of a configuration."""

import argparse
import dataclasses
import json
import textwrap
from typing import Any

from recursia import arguments, parsing

ABOUT = "Every field of a configuration: meaning, type, default, value."


def options(parser: parsing.Parser) -> None:
    """Adds the options."""
    chosen: Any = parser.add_argument(
        "config", metavar="CONFIG", type=parsing.place, help=arguments.CONFIG
    )
    chosen.completer = arguments.configs
    about = "show what starts with it, such as train or model.depth; default: all"
    parser.add_argument("prefix", nargs="?", metavar="PREFIX", default="", help=about)
    parser.set_defaults(takes_overrides=True)
    arguments.json_option(parser)


def run(given: argparse.Namespace) -> None:
    """Prints every field of a configuration: its value, type, default and meaning."""
    from recursia import config, fields

    run = config.load(given.config, given.overrides)
    found = fields.fields(run, given.prefix)
    if given.json:
        print(json.dumps({"fields": [dataclasses.asdict(field) for field in found]}))
        return
    for field in found:
        default = (
            "must be set" if field.default == "required" else f"default {_shown(field.default)}"
        )
        print(f"{field.path} = {_shown(field.value)}")
        print(
            textwrap.fill(
                f"{field.meaning} Takes {field.type}; {default}.",
                100,
                initial_indent=" " * 4,
                subsequent_indent=" " * 4,
            )
        )


def following(given: argparse.Namespace) -> str:
    """Returns the command that comes next."""
    return arguments.training(given.config, given.overrides)


def _shown(value: Any) -> str:
    """Returns a value as it may be typed."""
    if isinstance(value, str):
        return value or '""'
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, tuple) else str(value)
