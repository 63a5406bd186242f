"""The door of configurations: files, presets and overrides in, frozen dataclasses out.

`--config=FILE.py:PRESET` (or a shipped name, `--config=mor:tiny`), then `--config.a.b=value`. The
file's `get_config(preset)` returns an `ml_collections.ConfigDict` of sections. A field of the model
may be named without its section: `--config.depth.capacity` is `--config.model.depth.capacity`. So
may one of a block's mixer or feed-forward: `--config.block.num_heads` is
`--config.model.block.mixer.num_heads`.
"""

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from recursia import fields as configuration
from recursia import settings, typed
from recursia.errors import ConfigError
from recursia.fields import Field, fields
from recursia.presets import hint, presets, read, shipped
from recursia.typed import Raw

__all__ = ["Field", "build", "fields", "load", "override", "presets", "shipped", "to_dict"]


def load(name: str, overrides: Mapping[str, str]) -> settings.Run:
    """Returns the run that a file, a preset and overrides describe.

    Args:
      name: "FILE.py:PRESET", or a shipped file's bare name with its preset.
      overrides: dotted field to value, as typed.

    Raises:
      ConfigError: for anything that is not as it must be, in one line. A run that was only made
        shorter than its schedule goes on; `recursia.notes` says so.
    """
    values = read(name).to_dict()
    named = set(map(configuration.full, overrides))
    _drop_data(values, named)
    _override(values, overrides)
    run = build(settings.Run, values, "config")
    is_cut = "train.num_steps" in named and not any(f.startswith("schedule.") for f in named)
    if (conflict := run.schedule.conflict(run.train.num_steps)) and not is_cut:
        raise ConfigError(f"config.{conflict}")
    return run


def _override(values: dict[str, Any], overrides: Mapping[str, str]) -> None:
    """Sets what was typed: kinds first, outer ones before inner, for they say which fields are.

    Raises:
      ConfigError: for a field that was typed under two names, or whose short name is of several.
    """
    is_kind = lambda field: field.rpartition(".")[2] in ("kind", *settings.KINDS)
    of: dict[str, str] = {}
    for field in sorted(overrides, key=lambda name: (not is_kind(name), name.count("."))):
        place = configuration.resolve(field, configuration.tree(settings.Run, values))
        if place in of:
            raise ConfigError(f"config.{field}: is config.{of[place]}; give one of the two")
        of[place] = field
        _set(values, place, Raw(overrides[field]))


def _drop_data(values: dict[str, Any], named: set[str]) -> None:
    """Takes all of a file's data away where other data was typed.

    Raises:
      ConfigError: if both prepared folders and text to prepare were typed.
    """
    texts = [field for field in ("data.text", "data.validation_text") if field in named]
    if "data.path" in named and texts:
        raise ConfigError(f"config.{texts[0]}: is not read beside data.path; give one of the two")
    if named & {"data.path", "data.text"} and isinstance(data := values.get("data"), dict):
        for field in ("path", "weights", "text", "validation_text"):
            data.pop(field, None)


def override(run: settings.Run, overrides: Mapping[str, str]) -> settings.Run:
    """Returns a trained run with fields of its depth policy changed, such as where tokens exit.

    Raises:
      ConfigError: for a field of anything else, which its parameters are bound to.
    """
    values = to_dict(run)
    for field, value in overrides.items():
        place = configuration.full(field)
        if not place.startswith("model.depth.") or place == "model.depth.kind":
            raise ConfigError(
                f"--config.{field}: a trained model is used as it is; only fields of depth, such "
                "as config.depth.exit_threshold, may change"
            )
        _set(values, field, Raw(value))
    return build(settings.Run, values, "config")


def _set(values: dict[str, Any], field: str, value: Raw) -> None:
    *sections, last = configuration.full(field).split(".")
    for place in sections:
        inner = values.setdefault(place, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--config.{field}: {place!r} is {inner!r}, not a section")
        values = inner
    if last in settings.KINDS and isinstance(values.get(last), dict):
        values[last]["kind"] = value
    else:
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
    return _build(cls, values, path, (path, *configuration.tree(cls, values)))


def _build(cls: type, values: Any, path: str, tree: tuple[str, ...], about: str = "") -> Any:
    """Does as `build`; `tree` is its path and every field, `about` the end of some refusals."""
    hints = typing.get_type_hints(cls, include_extras=True)
    names = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: got {values!r}, takes a section with {', '.join(names)}")
    for name in values:
        if name not in names:
            root, *known = tree
            field = f"{path}.{name}".removeprefix(f"{root}.")
            end = configuration.near(field, list(names), known)
            raise ConfigError(f"{path}.{name}: no such field{end}")
    given = {}
    for name, value in values.items():
        place = f"{path}.{name}"
        if configuration.is_part(name, hints[name]):
            given[name] = _part(names[name], value, place, tree)
        elif dataclasses.is_dataclass(hints[name]):
            given[name] = _build(hints[name], value, place, tree)
        else:
            given[name] = typed.read(hints[name], value, place)
    missing = [name for name in names if name not in given and _is_required(names[name])]
    if missing:
        of = [_in_words(hints[name]) for name in missing]
        more = [f"{name}{words}" for name, words in zip(missing[1:], of[1:], strict=True)]
        rest = f", and so must {', '.join(more)}" if more else ""
        raise ConfigError(f"{path}.{missing[0]}: must be set{of[0]}{rest}{about}")
    try:
        return cls(**given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}.{error}") from None


def _part(field: dataclasses.Field, value: Any, path: str, tree: tuple[str, ...]) -> Any:
    """Returns the config of a module that a section names by its kind.

    A kind that was typed replaces the file's: fields of the file that it does not have go.
    """
    fields = dict(value) if isinstance(value, Mapping) else {"kind": value}
    name, kind = field.name, fields.pop("kind", configuration.default_kind(field))
    if kind not in (known := settings.kinds(name)):
        if now := settings.former(name, str(kind)):
            raise ConfigError(f"{path}.kind: {str(kind)!r} is now {now}")
        raise ConfigError(f"{path}.kind: no {name} {str(kind)!r}{hint(str(kind), known)}")
    cls: Any = settings.kind_config(name, str(kind))
    own = [field.name for field in dataclasses.fields(cls)]
    about = f"; {name} {str(kind)!r} takes {', '.join(own)}"
    if isinstance(kind, Raw):
        gone = [n for n, given in fields.items() if n not in own and not isinstance(given, Raw)]
        fields = {n: given for n, given in fields.items() if n not in gone}
        about += f", and not {', '.join(gone)}" if gone else ""
    return _build(cls, fields, path, tree, about)


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _in_words(hint: Any) -> str:
    is_section = hint is Any or (inspect.isclass(hint) and hint not in (int, float, bool, str))
    return "" if is_section else f" ({typed.describe(hint)})"


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass of settings as plain values, from which `build` makes it again."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values[field.name] = to_dict(value) if dataclasses.is_dataclass(value) else value
        if field.name in settings.KINDS and dataclasses.is_dataclass(value):
            values[field.name] = {"kind": settings.kind(value), **values[field.name]}
    return values
