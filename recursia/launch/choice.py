"""The target that was typed, with its settings."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

from recursia import dotted, meanings, modules, parsing
from recursia.errors import ConfigError
from recursia.launch.targets.target import Target


def titles(**_: Any) -> list[str]:
    """Returns the names of all targets, as they are typed."""
    return list(_classes())


def settings() -> dict[str, tuple[str, list[str]]]:
    """Returns the meaning of each setting of a target, and the targets that have it."""
    found: dict[str, tuple[str, list[str]]] = {}
    for title, cls in _classes().items():
        for field in dataclasses.fields(cls):
            meaning = meanings.meanings(cls)[field.name].rstrip(".")
            found.setdefault(field.name, (meaning, []))[1].append(title)
    return found


def read(title: str, typed: Mapping[str, str]) -> Target:
    """Returns a target.

    Args:
      title: its name, as typed.
      typed: its settings, as typed.

    Raises:
      ConfigError: for an unknown target, a setting that it lacks or needs, or a wrong value.
    """
    cls = _own(title) if "." in title else _classes().get(title)
    if cls is None:
        raise ConfigError(
            f"--target={title}: unknown; takes {', '.join(_classes())}, or the dotted path of a "
            "class of yours, such as my_targets.Queue"
        )
    known = {field.name: field for field in dataclasses.fields(cls)}
    for name, value in typed.items():
        if name not in known:
            raise ConfigError(
                f"--target.{name}={value}: {title} has no such setting; it has {', '.join(known)}"
            )
    for name, field in known.items():
        if not typed.get(name) and field.default is dataclasses.MISSING:
            meaning = meanings.meanings(cls)[name].rstrip(".")
            raise ConfigError(f"--target={title}: needs --target.{name}=VALUE ({meaning})")
    return cls(**{name: _value(known[name], value) for name, value in typed.items()})


def _own(path: str) -> type[Target]:
    """Returns a class of the user's own."""
    cls: type[Target] = dotted.subclass(Target, path)
    if cls.script is Target.script:
        raise ConfigError(f"{path}: does not define script, as every Target")
    known = settings()
    if new := [field.name for field in dataclasses.fields(cls) if field.name not in known]:
        raise ConfigError(
            f"{path}: {new[0]!r} is a setting of no shipped target, so it cannot be typed; make it "
            f"a constant of the class, or take one of {', '.join(known)}"
        )
    return cls


def _classes() -> dict[str, type[Target]]:
    classes = (modules.subclass(Target, name) for name in modules.names(Target))
    return {cls.title(): cls for cls in classes if cls}


def _value(field: dataclasses.Field, typed: str) -> str | int | bool:
    option = f"--target.{field.name}"
    if field.type is bool:
        if typed.lower() not in ("true", "false"):
            raise ConfigError(f"{option}={typed}: takes true or false")
        return typed.lower() == "true"
    try:
        return parsing.integer(0)(typed) if field.type is int else typed
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{option}: {error}") from None
