"""Reads configurations: a file, a preset and overrides become frozen dataclasses of settings.

`--config=FILE.py:PRESET`, or `--config=mor:tiny` for a shipped file, or a run's directory, is
followed by overrides `--config.a.b=value`. The file's `get_config(preset)` returns an
`ml_collections.ConfigDict` of sections. A field of the model may omit its section:
`--config.depth.capacity` is `--config.model.depth.capacity`. A field of a block's mixer or
feed-forward may omit that too: `--config.block.num_heads` is
`--config.model.block.mixer.num_heads`.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from recursia import buckets, jsonfile, kinds, settings
from recursia import fields as configuration
from recursia.errors import ConfigError, StorageError
from recursia.fields import Field, fields
from recursia.presets import presets, read, shipped
from recursia.sections import build, to_dict
from recursia.typed import Raw

RECORD = "config.json"  # file of a run's directory with its settings

__all__ = [
    "Field",
    "build",
    "change",
    "fields",
    "load",
    "override",
    "presets",
    "shipped",
    "to_dict",
]


def load(name: str, overrides: Mapping[str, str]) -> settings.Run:
    """Returns the run that a file, a preset and overrides describe.

    Args:
      name: "FILE.py:PRESET", or a shipped file's bare name with its preset; or a run's directory,
        whose settings are taken.
      overrides: dotted field to value, as typed.

    Raises:
      ConfigError: for any mistake, in one line. It is no mistake to type `train.num_steps` alone
        and cut the schedule short; `recursia.notes` reports it.
    """
    values = to_dict(_of_run(_record(name))) if is_run(name) else read(name).to_dict()
    return _changed(values, overrides)


def is_run(name: str) -> bool:
    """Returns whether the name of a configuration is that of a run's directory."""
    return buckets.is_place(name) or os.path.isfile(_record(name))  # which takes any name


def _record(name: str) -> str:
    return os.path.join(os.path.expanduser(name), RECORD)


def _of_run(record: str) -> settings.Run:
    try:
        return recorded(buckets.path(record))
    except FileNotFoundError:
        raise ConfigError(f"--config={os.path.dirname(record)}: holds no {RECORD}") from None


def recorded(path: pathlib.Path) -> settings.Run:
    """Returns the run whose settings were written to a file of JSON.

    Raises:
      FileNotFoundError: if there is no file.
      ConfigError: if it is not readable.
    """
    try:
        values = jsonfile.read(path)
    except (FileNotFoundError, StorageError):
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    return build(settings.Run, present(values), str(path))


def present(values: Any) -> Any:
    """Returns recorded settings in the fields of this version, whichever wrote them."""
    log = values.get("log") if isinstance(values, Mapping) else None
    if not isinstance(log, Mapping) or "tensorboard" not in log:
        return values
    log = dict(log)
    others = [name for name in log.get("sinks", ()) if name != "tensorboard"]
    log["sinks"] = ["tensorboard"] * bool(log.pop("tensorboard")) + others
    return {**values, "log": log}


def change(run: settings.Run, overrides: Mapping[str, str]) -> settings.Run:
    """Returns the run with any of its fields changed; raises ConfigError as `load` does.

    Args:
      run: a run.
      overrides: dotted field to value, as typed.
    """
    return _changed(to_dict(run), overrides)


def _changed(values: dict[str, Any], overrides: Mapping[str, str]) -> settings.Run:
    named = set(map(configuration.full, overrides))
    _drop_data(values, named)
    _override(values, overrides)
    run = build(settings.Run, values, "config")
    is_cut = "train.num_steps" in named and not any(f.startswith("schedule.") for f in named)
    if (conflict := run.schedule.conflict(run.train.num_steps)) and not is_cut:
        raise ConfigError(f"config.{conflict}")
    return run


def _override(values: dict[str, Any], overrides: Mapping[str, str]) -> None:
    """Sets the typed fields: kinds first, outer before inner, as they determine the other fields.

    Raises:
      ConfigError: for a field typed under two names, or a short name that several fields have.
    """
    is_kind = lambda field: field.rpartition(".")[2] in ("kind", *kinds.BASES)
    typed_as: dict[str, str] = {}
    for field in sorted(overrides, key=lambda name: (not is_kind(name), name.count("."))):
        place = configuration.resolve(field, configuration.tree(settings.Run, values))
        if place in typed_as:
            raise ConfigError(f"config.{field}: is config.{typed_as[place]}; give one of the two")
        typed_as[place] = field
        _set(values, place, Raw(overrides[field]))


def _drop_data(values: dict[str, Any], named: set[str]) -> None:
    """Deletes the data of the configuration file if other data was typed.

    Raises:
      ConfigError: if both prepared directories and text to prepare were typed.
    """
    texts = [field for field in ("data.text", "data.validation_text") if field in named]
    if "data.path" in named and texts:
        raise ConfigError(f"config.{texts[0]}: is not read beside data.path; give one of the two")
    if named & {"data.path", "data.text"} and isinstance(data := values.get("data"), dict):
        for field in ("path", "weights", "text", "validation_text"):
            data.pop(field, None)


def override(
    run: settings.Run, overrides: Mapping[str, str], others: tuple[str, ...] = ()
) -> settings.Run:
    """Returns a trained run with fields of its depth policy changed, such as `exit_threshold`.

    Args:
      run: the run.
      overrides: dotted field to value, as typed.
      others: full names of fields outside `model.depth` that may change too.

    Raises:
      ConfigError: for any other field: the parameters were trained with it.
    """
    values = to_dict(run)
    for field, value in overrides.items():
        place = configuration.full(field)
        is_depth = place.startswith("model.depth.") and place != "model.depth.kind"
        if not is_depth and place not in others:
            more = "".join(f", and config.{each}" for each in others)
            raise ConfigError(
                f"--config.{field}: only fields of depth, such as config.depth.exit_threshold"
                f"{more}, may change in a trained model"
            )
        _set(values, field, Raw(value))
    return build(settings.Run, values, "config")


def _set(values: dict[str, Any], field: str, value: Raw) -> None:
    *sections, last = configuration.full(field).split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if _are_pairs(inner):  # as settings hold a table, such as model.varies
            inner = values[section] = dict(inner)
        if section in kinds.BASES and isinstance(inner, str | None):  # its kind alone
            inner = values[section] = {"kind": inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"--config.{field}: {section!r} is {inner!r}, not a section")
        values = inner
    if last in kinds.BASES and isinstance(values.get(last), dict):
        values[last]["kind"] = value
    else:
        values[last] = value


def _are_pairs(value: Any) -> bool:
    is_pair = lambda each: isinstance(each, (tuple, list)) and len(each) == 2
    return isinstance(value, (tuple, list)) and all(map(is_pair, value))
