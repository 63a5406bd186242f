"""Sections of settings from plain values, such as a file's or a record's, and back."""

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from recursia import dotted, fields, kinds, typed
from recursia.errors import ConfigError
from recursia.presets import hint
from recursia.typed import Raw


def build(cls: type, values: Any, path: str) -> Any:
    """Returns an instance of a dataclass of settings, with the type of every value checked.

    Args:
      cls: a frozen dataclass of settings.
      values: its fields by name; nested sections are mappings too.
      path: the dotted path of `values`, for messages.

    Raises:
      ConfigError: for an unknown, missing or mistyped field, or a value out of range.
    """
    return _build(cls, values, path, (path, *fields.tree(cls, values)))


def _build(cls: type, values: Any, path: str, known: tuple[str, ...], suffix: str = "") -> Any:
    """Returns as `build`; `known` is the root path and every field, `suffix` ends a message."""
    hints = typing.get_type_hints(cls, include_extras=True)
    by_name = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: got {values!r}, takes a section with {', '.join(by_name)}")
    for name in values:
        if name not in by_name:
            root, *paths = known
            field = f"{path}.{name}".removeprefix(f"{root}.")
            suggestion = fields.near(field, list(by_name), paths)
            raise ConfigError(f"{path}.{name}: no such field{suggestion}")
    given = {}
    for name, value in values.items():
        place = f"{path}.{name}"
        if fields.names_a_kind(name, hints[name]):
            given[name] = _build_kind(by_name[name], value, place, known)
        elif dataclasses.is_dataclass(hints[name]):
            given[name] = _build(hints[name], value, place, known)
        else:
            given[name] = typed.read(hints[name], value, place)
    missing = [name for name in by_name if name not in given and _is_required(by_name[name])]
    if missing:
        first, *others = missing
        more = ", ".join(f"{name}{_type_in_words(hints[name])}" for name in others)
        rest = f", and so must {more}" if more else ""
        takes = _type_in_words(hints[first])
        raise ConfigError(f"{path}.{first}: must be set{takes}{rest}{suffix}")
    try:
        return cls(**given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}.{error}") from None
    except Exception as error:
        if not kinds.is_own(cls):
            raise
        file = inspect.getfile(cls)
        raise ConfigError(f"{path}: {file}: {dotted.raised(error, file)}") from None


def _build_kind(field: dataclasses.Field, value: Any, path: str, known: tuple[str, ...]) -> Any:
    """Returns the settings of the module that a section names by its kind.

    A typed kind replaces the file's, and the file's fields that the typed kind lacks are dropped.
    """
    given = dict(value) if isinstance(value, Mapping) else {"kind": value}
    name, kind = field.name, given.pop("kind", fields.default_kind(field))
    if kinds.takes_none(field) and kind in (None, kinds.NONE):
        if lost := [inner for inner, value in given.items() if isinstance(value, Raw)]:
            raise ConfigError(f"{path}.{lost[0]}: there is no {name}; set {path}.kind too")
        return None
    try:
        cls: Any = kinds.config_class(name, str(kind))
    except ConfigError as error:
        raise ConfigError(f"{path}.kind: {error}") from None
    if cls is None:
        if replacement := kinds.replacement(name, str(kind)):
            raise ConfigError(f"{path}.kind: {str(kind)!r} is now {replacement}")
        choices = f"{hint(str(kind), kinds.names(name))}, or {kinds.OWN}"
        raise ConfigError(f"{path}.kind: no {name} {str(kind)!r}{choices}")
    own = [field.name for field in dataclasses.fields(cls)]
    suffix = f"; {name} {str(kind)!r} takes {', '.join(own)}"
    if isinstance(kind, Raw):
        dropped = [n for n, value in given.items() if n not in own and not isinstance(value, Raw)]
        given = {n: value for n, value in given.items() if n not in dropped}
        suffix += f", and not {', '.join(dropped)}" if dropped else ""
    return _build(cls, given, path, known, suffix)


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _type_in_words(hint: Any) -> str:
    is_section = hint is Any or (inspect.isclass(hint) and hint not in (int, float, bool, str))
    return "" if is_section else f" ({typed.describe(hint)})"


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass of settings as plain values, the inverse of `build`."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = to_dict(value) if dataclasses.is_dataclass(value) else value
        if field.name in kinds.BASES and (value is None or dataclasses.is_dataclass(value)):
            inner = {"kind": kinds.kind_of(value), **(inner or {})}
        values[field.name] = inner
    return values
