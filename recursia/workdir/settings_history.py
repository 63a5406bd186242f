"""The settings with which a run was resumed: what has changed since, and what may not."""

import pathlib
import time
from typing import Any

from recursia import changes, config, jsonlines, settings
from recursia.errors import CheckpointError, ConfigError, StorageError
from recursia.workdir import directory, place

FILE = "settings_history.jsonl"
# Fields that make another run of it, besides those of its model and its data (`identity`).
_SAME = ("count", "every_steps", "num_fragments", "delay", "exchange")  # what is in flight
FIXED = (
    *("train.seed", "optimizer.kind", "optimizer.trainable", "optimizer.table_state"),
    *(f"replicas.{name}" for name in _SAME),
)

Changed = dict[str, tuple[Any, Any]]  # old and new value of each dotted field


def changed(workdir: pathlib.Path, run: settings.Run) -> Changed:
    """Returns the fields in which a run differs from the one that its directory records.

    Raises:
      ConfigError: if its config.json cannot be read.
      CheckpointError: if a field differs that makes another run of it.
    """
    before = directory.recorded(workdir)
    new, old = changes.overrides(before, run), changes.overrides(run, before)
    found = {name: (old.get(name), new.get(name)) for name in new | old}
    if fixed := [name for name in FIXED if name in found]:
        was, now = found[fixed[0]]
        raise CheckpointError(
            f"--workdir={workdir}: config.{fixed[0]} was {was!r} and is {now!r}, which makes it "
            "another run; use another workdir, or the same value"
        )
    return found


def described(found: Changed) -> list[str]:
    """Returns a line for each field that has changed."""
    return [f"changed: config.{name} was {was!r}, is {now!r}" for name, (was, now) in found.items()]


def append(workdir: pathlib.Path, step: int, found: Changed) -> None:
    """Appends the changes with which a run resumes at a step; raises StorageError if it cannot."""
    row = {"step": step, "changed": found, "time": round(time.time(), 3)}
    path = workdir / FILE
    try:
        place.of(path).append(path, jsonlines.line(row), is_flushed=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from None


def of_step(workdir: pathlib.Path, step: int) -> settings.Run:
    """Returns the settings with which a step was trained: what changed later is undone.

    Raises:
      ConfigError: if config.json cannot be read, or does not fit what is recorded.
    """
    run, path = directory.recorded(workdir), workdir / FILE
    values = config.to_dict(run)
    for row in reversed(list(jsonlines.rows(path))):
        if row["step"] < step or not isinstance(found := row.get("changed"), dict):
            continue
        for name, pair in found.items():
            *sections, last = name.split(".")
            fields = values
            for section in sections:
                fields = fields.setdefault(section, {})
                if not isinstance(fields, dict):
                    raise ConfigError(f"{path}: {name!r:.100} was changed, and is no field")
            if isinstance(pair, list) and len(pair) == 2:
                fields[last] = pair[0]
    return config.build(settings.Run, config.present(values), str(path))
