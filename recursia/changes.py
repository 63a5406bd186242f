"""Runs with some fields changed, and what to type to get from one run to another."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from recursia import config, settings


def change(run: settings.Run, **values: Any) -> settings.Run:
    """Returns a run with fields of its sections changed, such as `train__num_microbatches=2`."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, field = name.partition("__")
        sections.setdefault(section, {})[field] = value
    for section, fields in sections.items():
        changed = dataclasses.replace(getattr(run, section), **fields)
        run = dataclasses.replace(run, **{section: changed})
    return run


def overrides(before: settings.Run, after: settings.Run) -> dict[str, Any]:
    """Returns the dotted fields in which `after` differs, with its values, as one may type them."""

    def changes(old: dict, new: dict, path: str) -> Iterator[tuple[str, Any]]:
        for name, value in new.items():
            if isinstance(value, dict) and isinstance(old.get(name), dict):
                yield from changes(old[name], value, f"{path}{name}.")
            elif value != old.get(name):
                yield f"{path}{name}", value

    return dict(changes(config.to_dict(before), config.to_dict(after), ""))


def typed(changes: Mapping[str, Any]) -> str:
    """Returns overrides as they are typed on a command line."""
    return " ".join(f"--config.{field}={value}" for field, value in changes.items())
