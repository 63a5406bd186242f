"""The door of configurations: files, presets and overrides in, frozen dataclasses out.

`--config=FILE.py:PRESET` (or a shipped name, `--config=mor:tiny`), then `--config.a.b=value`. The
file's `get_config(preset)` returns an `ml_collections.ConfigDict` of sections. A field of the model
may be named without its section: `--config.depth.capacity` is `--config.model.depth.capacity`.
"""

import ast
import dataclasses
import difflib
import importlib.util
import pathlib
import pkgutil
import traceback
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections

from recursia import settings
from recursia.errors import ConfigError


class Raw(str):
    """A value as it was typed, still to be read by the type of its field."""


def load(name: str, overrides: Mapping[str, str]) -> settings.Run:
    """Returns the run that a file, a preset and overrides describe.

    Args:
      name: "FILE.py:PRESET", or a shipped file's bare name with its preset.
      overrides: dotted field to value, as typed.

    Raises:
      ConfigError: for anything that is not as it must be, in one line.
    """
    values = _read(name).to_dict()
    for field, value in overrides.items():
        _set(values, field, Raw(value))
    return build(settings.Run, values, "config")


def override(run: settings.Run, overrides: Mapping[str, str]) -> settings.Run:
    """Returns a trained run with fields of its depth policy changed, such as where tokens exit.

    Raises:
      ConfigError: for a field of anything else, which its parameters are bound to.
    """
    values = to_dict(run)
    for field, value in overrides.items():
        if not field.removeprefix("model.").startswith("depth."):
            raise ConfigError(
                f"--config.{field}: a trained model is used as it is; only fields of depth, such "
                "as config.depth.exit_threshold, may change"
            )
        _set(values, field, Raw(value))
    return build(settings.Run, values, "config")


def _read(name: str) -> ml_collections.ConfigDict:
    """Returns what `get_config` of a configuration file gives."""
    file, _, preset = name.partition(":") if not name.endswith(".py") else (name, "", "")
    path = pathlib.Path(file) if file.endswith(".py") else _shipped() / f"{file}.py"
    if not path.is_file():
        known = sorted(
            p.stem for p in _shipped().glob("*.py") if p.stem not in ("__init__", "base")
        )
        raise ConfigError(f"--config={name}: no file {path.name}{_hint(file, known)}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(preset) if preset else module.get_config()
    except TypeError as error:
        raise ConfigError(f"--config={name}: name a preset: {path.stem}:PRESET ({error})") from None
    except ValueError as error:
        raise ConfigError(f"--config={name}: {error}") from None
    except Exception as error:  # whatever a user's file may raise
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
        ]
        where = f"line {lines[-1]}: " if lines else ""
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"--config={name}: {where}{what}") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"--config={name}: get_config gave {type(config).__name__}, not ConfigDict"
        )
    return config


def _shipped() -> pathlib.Path:
    import recursia.configs

    return pathlib.Path(recursia.configs.__path__[0])


def _set(values: dict[str, Any], field: str, value: Raw) -> None:
    first = field.partition(".")[0]
    if first not in _names(settings.Run) and first in _names(settings.Model):
        field = f"model.{field}"
    *sections, last = field.split(".")
    for place in sections:
        inner = values.setdefault(place, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--config.{field}: {place!r} is {inner!r}, not a section")
        values = inner
    values[last] = value


def build(cls: type, values: Any, path: str) -> Any:
    """Returns the dataclass that a tree of values describes, every field checked.

    Args:
      cls: a frozen dataclass of settings.
      values: its fields by name; nested sections are mappings too.
      path: where `values` stands, for messages.

    Raises:
      ConfigError: for an unknown, missing or mistyped field, or a value out of range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: got {values!r}, takes a section with {', '.join(_names(cls))}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise ConfigError(f"{path}.{name}: no such field{_hint(name, list(fields))}")
    given = {name: _field(hints, name, value, f"{path}.{name}") for name, value in values.items()}
    missing = dataclasses.MISSING
    for name, field in fields.items():
        if name not in given and field.default is missing and field.default_factory is missing:
            raise ConfigError(f"{path}.{name}: must be set")
    try:
        return cls(**given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}.{error}") from None


def _field(hints: dict[str, Any], name: str, value: Any, path: str) -> Any:
    if name not in settings.KINDS or hints[name] is not Any:
        return _value(hints[name], value, path)
    package = settings.KINDS[name]
    known = [
        module.name
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
        if settings.kind_config(package, module.name)
    ]
    fields = dict(value) if isinstance(value, Mapping) else {"kind": value}
    kind = str(fields.pop("kind", ""))
    if kind not in known:
        raise ConfigError(f"{path}.kind: no {name} {kind!r}{_hint(kind, known)}")
    return build(settings.kind_config(package, kind), fields, path)


def _value(hint: Any, value: Any, path: str) -> Any:
    """Returns a value as the type of its field."""
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if isinstance(value, Mapping):  # entries of a table, each typed by itself
        value = {k: _literal(v) if isinstance(v, Raw) else v for k, v in value.items()}
    if isinstance(value, Raw) and hint is not str and not _is_choice(hint):
        value = _literal(value)
    try:
        return _convert(hint, value)
    except TypeError:
        shown = str(value) if isinstance(value, str) else value
        raise ConfigError(f"{path}: got {shown!r}, takes {_describe(hint)}") from None


def _literal(typed: Raw) -> Any:
    named = {"true": True, "false": False, "none": None}
    if typed.lower() in named:
        return named[typed.lower()]
    try:
        return ast.literal_eval(typed)
    except (ValueError, SyntaxError):
        return str(typed)


def _convert(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _convert(option, value)
            except TypeError:
                continue
    elif origin is Literal:
        if str(value) in arguments:
            return str(value)
    elif origin is tuple:
        items = tuple(value.items()) if isinstance(value, Mapping) else value
        if isinstance(items, str) and arguments[0] is str:
            items = tuple(part.strip() for part in items.split(",")) if items else ()
        if isinstance(items, list | tuple):
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                return tuple(_convert(arguments[0], item) for item in items)
            if len(items) == len(arguments):
                return tuple(map(_convert, arguments, items))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is str and isinstance(value, str):
        return str(value)
    elif hint in (int, bool, types.NoneType) and type(value) is hint:
        return value
    raise TypeError


def _is_choice(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    plain = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    if hint in plain:
        return plain[hint]
    if hint is types.NoneType:
        return "none"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_describe, arguments))
    return f"a list, each {_describe(arguments[0])}" if arguments[1:] == (...,) else "a pair"


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    there = f"is {', '.join(known)}"
    return f"; did you mean {close[0]!r}? There {there}" if close else f"; there {there}"


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass of settings as plain values, from which `build` makes it again."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values[field.name] = to_dict(value) if dataclasses.is_dataclass(value) else value
        if field.name in settings.KINDS and dataclasses.is_dataclass(value):
            values[field.name] = {"kind": settings.kind(value), **values[field.name]}
    return values
