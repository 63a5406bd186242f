"""A trial: a base configuration with overrides, and the name that follows from them alone."""

import dataclasses
import hashlib
import json
import numbers
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from recursia import buckets, config, fields, presets, settings
from recursia.errors import ConfigError

DIGITS = 12  # of a name
UNNAMED = "log."  # what a run writes beside its result


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      name: a digest of the base and the overrides as they were declared, in any order or spelling,
        but for those of `log`.
      config: the base, as `--config` takes it; a file by its absolute path.
      overrides: value by the full dotted name of each field that the sweep sets.
      labels: what tables and fits call the trial; the name does not depend on them.
    """

    name: str
    config: str
    overrides: dict[str, Any]
    labels: dict[str, Any] = dataclasses.field(default_factory=dict)

    def command(self, workdir: str) -> tuple[str, ...]:
        """Returns the arguments of `recursia` that train it."""
        changes = (f"--config.{field}={text(v)}" for field, v in self.overrides.items())
        return ("train", f"--config={self.config}", *changes, f"--workdir={workdir}")

    def run(self) -> settings.Run:
        """Returns its settings; raises what `config.load` raises."""
        return config.load(self.config, {f: text(v) for f, v in self.overrides.items()})


def resolve(
    base: str, overrides: Mapping[str, Any], typed: Mapping[str, str], labels: dict[str, Any]
) -> tuple[Trial, settings.Run]:
    """Returns a trial and its settings.

    Args:
      base: as `--config` takes it.
      overrides: declared values by field, under short or full names.
      typed: overrides of the command line, which replace those.
      labels: of the trial.

    Raises:
      ConfigError: for a mistake in any of them.
    """
    given = {field: text(value) for field, value in overrides.items()}
    run = config.load(base, given)
    if typed:
        known = tuple(fields.tree(settings.Run, config.to_dict(run)))
        replaced = {fields.resolve(field, known) for field in typed}
        kept = {f: v for f, v in given.items() if fields.resolve(f, known) not in replaced}
        given = {**kept, **typed}
        run = config.load(base, given)
    values = config.to_dict(run)
    known = tuple(fields.tree(settings.Run, values))
    found, portable = {}, {}
    for field, declared in given.items():
        place = fields.resolve(field, known)
        place += ".kind" * (f"{place}.kind" in known)
        found[place] = _value(values, place)
        if not place.startswith(UNNAMED):
            portable[place] = _portable(found[place], declared)
    content = json.dumps({"config": _portable_name(base), "overrides": portable}, sort_keys=True)
    name = hashlib.sha256(content.encode()).hexdigest()[:DIGITS]
    return Trial(name, placed(base), dict(sorted(found.items())), labels), run


def placed(base: str) -> str:
    """Returns the name of a configuration, with the absolute path of a file or run."""
    if buckets.is_place(base):
        return base
    is_run = config.is_run(base)  # not any folder: one may have the name of a shipped file
    file, preset = (base, "") if is_run else presets.split(base)
    if is_run or file.endswith(".py"):
        file = os.path.abspath(os.path.expanduser(file))
    return f"{file}:{preset}" if preset else file


def text(value: Any) -> str:
    """Returns a value as it is typed on the command line.

    Raises:
      ConfigError: for what cannot be typed.
    """
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, numbers.Integral):
        return repr(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, list | tuple | dict):
        is_text = not isinstance(value, dict) and all(isinstance(each, str) for each in value)
        return json.dumps(value, ensure_ascii=False) if is_text else repr(_plain(value))
    raise ConfigError(f"got {value!r}, takes a number, text, true or false, none, or a list")


def _plain(value: Any) -> Any:
    """Returns a list or mapping of plain values, whose `repr` is a literal."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if value is None or isinstance(value, str | bool):
        return value
    raise ConfigError(f"got {value!r} in a list, takes numbers, text, true or false, or none")


def _value(values: Any, place: str) -> Any:
    """Returns the value of a field, as JSON holds it."""
    for part in place.split("."):
        values = (values if isinstance(values, Mapping) else dict(values))[part]
    return json.loads(json.dumps(values))


def _portable(value: Any, declared: str) -> Any:
    """Returns a value whose paths are as they were declared, and not those of this machine."""
    if isinstance(value, list):
        return [_portable(each, declared) for each in value]
    if not isinstance(value, str) or not os.path.isabs(value) or value in declared:
        return value
    for root, short in ((os.getcwd(), ""), (os.path.expanduser("~"), "~/")):
        if value.startswith(f"{root.rstrip('/')}/"):
            return short + value.removeprefix(f"{root.rstrip('/')}/")
    return value


def _portable_name(base: str) -> str:
    """Returns the name of a configuration without its folder."""
    file, preset = presets.split(base)
    stem = pathlib.PurePath(file).name
    if file.endswith(".py") and presets.is_shipped(base):
        stem = stem.removesuffix(".py")
    return f"{stem if file.endswith('.py') else file}:{preset}"
