"""Writes docs/configs.md: every field of a configuration, from the dataclasses of settings.

python -m docs.configs
"""

import dataclasses
import inspect
import json
import pathlib
import typing
from typing import Any

from recursia import fields, kinds, settings, typed
from recursia.meanings import meanings

PAGE = pathlib.Path(__file__).with_name("configs.md")
INTRODUCTION = """# Configurations

A configuration is a file, `--config=FILE.py:PRESET`, whose `get_config(preset)` returns the fields
that differ from their defaults; a shipped one such as `mor:tiny`; or a run's directory. Any field
can be set on the command line: `--config.train.num_steps=100`. `recursia fields mor:tiny` lists
the fields of one configuration with their values.

A field named `kind` chooses a class, whose fields are then the fields of the section; besides the
kinds listed here, it takes the dotted path of [a class of your own](extending.md).

This page is written by `python -m docs.configs` from the classes and their docstrings. "Required"
fields have no default: each shipped configuration sets them.

"""


def page() -> str:
    """Returns the page."""
    return INTRODUCTION + "\n".join(_sections(settings.Run, ""))


def _sections(cls: Any, path: str) -> list[str]:
    """Returns the tables of a class's own fields, and of the sections and kinds inside it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = [_table(cls)] if path else []
    for field in dataclasses.fields(cls):
        hint, place = hints[field.name], f"{path}{field.name}"
        if fields.names_a_kind(field.name, hint):
            found += _kinds(field, place, meanings(cls)[field.name])
        elif dataclasses.is_dataclass(hint):
            inner = _sections(hint, f"{place}.")
            found += [f"## {place}\n\n{_about(hint)}\n\n{inner[0]}", *inner[1:]]
        elif not path:
            found.append(f"## {place}\n\n{_header()}{_row(field, hint, meanings(cls))}")
    return found


def _kinds(field: dataclasses.Field, place: str, meaning: str) -> list[str]:
    """Returns what a field that names a kind takes, and the tables of its kinds."""
    default = fields.default_kind(field)
    names = ", ".join(f"`{name}`" for name in kinds.names(field.name))
    ends = f"default `{default}`" if default else "required"
    found = [
        f"## {place}\n\n{meaning[0].upper()}{meaning[1:]} `{place}.kind` takes {names}; {ends}.\n"
    ]
    if default == kinds.NONE:  # kinds that another field has, whose section has their tables
        return found
    alike: dict[str, list[str]] = {}
    for name in kinds.names(field.name):
        cls: Any = kinds.config_class(field.name, name)
        alike.setdefault(_table(cls), []).append(name)
    for table, same in alike.items():
        lines = [f"- `{n}`: {_about(kinds.config_class(field.name, n))}\n" for n in same]
        heading = f"### {place}: {', '.join(same)}\n\n"
        found.append(heading + "".join(lines) + (f"\n{table}" if table else ""))
    inside = {}
    for name in kinds.names(field.name):
        inside |= _inner(kinds.config_class(field.name, name), f"{place}.")
    return found + [section for sections in inside.values() for section in sections]


def _inner(cls: Any, path: str) -> dict[str, list[str]]:
    """Returns the sections and kinds inside a kind, by their places."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {}
    for field in dataclasses.fields(cls):
        hint, place = hints[field.name], f"{path}{field.name}"
        if fields.names_a_kind(field.name, hint) and field.name not in path:
            found[place] = _kinds(field, place, meanings(cls)[field.name])
        elif dataclasses.is_dataclass(hint) and field.name not in kinds.BASES:
            found[place] = [f"### {place}\n\n{_about(hint)}\n\n{_table(hint)}"]
    return found


def _table(cls: Any) -> str:
    """Returns the table of the fields of a class that are no sections."""
    hints, by_name = typing.get_type_hints(cls, include_extras=True), meanings(cls)
    rows = [
        _row(field, hints[field.name], by_name)
        for field in dataclasses.fields(cls)
        if not dataclasses.is_dataclass(hints[field.name])
        and not fields.names_a_kind(field.name, hints[field.name])
    ]
    return _header() + "".join(rows) if rows else ""


def _header() -> str:
    return "| field | meaning | takes | default |\n|---|---|---|---|\n"


def _row(field: dataclasses.Field, hint: Any, by_name: dict[str, str]) -> str:
    cells = f"`{field.name}`", by_name[field.name], typed.describe(hint), _default(field)
    shown = " | ".join(cell.replace("|", "\\|") for cell in cells)
    return f"| {shown} |\n"


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else "see its section"
    value = field.default
    shown = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
    return f"`{shown}`" if shown else "empty"


def _about(cls: Any) -> str:
    """Returns the first paragraph of a class's docstring."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(page())
