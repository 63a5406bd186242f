"""A sweep's directory: its declaration, and a directory for each trial.

`sweep.json` has the declaration and how it is run, `trials/NAME/` is the directory of one run, and
`trials/NAME/trial.json` says what that run is, from before it starts.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any

from recursia import jsonfile, storage
from recursia.config import RECORD
from recursia.errors import ConfigError, StorageError
from recursia.sweep.declaration import SWEEP, Declaration
from recursia.sweep.trial import Trial
from recursia.workdir import place

TRIAL, TRIALS = "trial.json", "trials"
LOG = "log.txt"  # of a trial, in its directory
_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
_TYPES: dict[str, type] = {"config": str, "digest": str, "overrides": dict, "labels": dict}
_TYPES |= {"trials": list, "is_search": bool, "how": dict}
_ANEW = "remove it, and give the first command of the sweep again, which writes it anew"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a directory says of its sweep.

    Attributes:
      directory: of the sweep, on disk or in a bucket.
      config: the file that declares it, as `--config` takes it.
      digest: SHA-256 of that file.
      overrides: that were typed, for all trials.
      trials: names in the order of their declaration; of a search, in that of their first start.
      is_search: whether trials are suggested one after another.
      how: options with which it is run, by their names.
    """

    directory: pathlib.Path
    config: str
    digest: str
    overrides: dict[str, str]
    trials: tuple[str, ...]
    is_search: bool
    how: dict[str, Any]

    def folder(self, name: str) -> pathlib.Path:
        """Returns the directory of a trial."""
        return self.directory / TRIALS / name

    def trial(self, name: str) -> Trial:
        """Returns a trial; raises ConfigError if its file is not readable."""
        path = self.folder(name) / TRIAL
        values = _json(path)
        return Trial(name, *(_of(values, path, each) for each in ("config", "overrides", "labels")))

    def all(self) -> list[Trial]:
        """Returns the trials in their order; raises ConfigError if a file is not readable."""
        return storage.at_once(self.trial, self.trials)


def write(directory: pathlib.Path, declared: Declaration, how: dict[str, Any]) -> list[str]:
    """Writes a declaration; returns the names of trials that an earlier one had, and it has not.

    Raises:
      ConfigError: if the directory holds a run, or a search where this is none, or the other way
        round.
      StorageError: if it cannot be written.
    """
    if (directory / RECORD).exists():
        raise ConfigError(f"--workdir={directory}: holds a run ({RECORD}); give another")
    is_search = declared.search is not None
    before = read(directory) if (directory / SWEEP).exists() else None
    if before is not None and before.is_search != is_search:
        raise ConfigError(f"--workdir={directory}: holds a sweep of another kind; give another")
    storage.at_once(lambda trial: add(directory, trial), declared.trials)
    values = {
        "config": declared.config,
        "digest": declared.digest,
        "overrides": declared.overrides,
        "trials": [trial.name for trial in declared.trials],
        "is_search": is_search,
        "how": how,
    }
    _write(directory / SWEEP, values)
    known = {trial.name for trial in declared.trials}
    return [name for name in (before.trials if before else ()) if name not in known]


def add(directory: pathlib.Path, trial: Trial) -> pathlib.Path:
    """Writes what a trial is, unless it is written; returns its directory."""
    folder = directory / TRIALS / trial.name
    values = {"config": trial.config, "overrides": trial.overrides, "labels": trial.labels}
    try:
        is_written = _json(folder / TRIAL) == values
    except ConfigError:  # missing, or damaged
        is_written = False
    if not is_written:
        _write(folder / TRIAL, values)
    return folder


def read(directory: pathlib.Path) -> Sweep:
    """Returns the sweep of a directory.

    Raises:
      ConfigError: if there is none, or its file is not readable.
    """
    if not (directory / SWEEP).is_file():
        raise ConfigError(f"--workdir={directory}: no {SWEEP}; is it a sweep's directory?")
    values = _json(directory / SWEEP)
    given: dict[str, Any] = {
        name: _of(values, directory / SWEEP, name) for name in _TYPES.keys() - {"labels"}
    }
    names = _found(directory) if given["is_search"] else given["trials"]
    is_name = lambda name: isinstance(name, str) and _NAME.fullmatch(name)
    if not all(map(is_name, names)) or len(set(names)) < len(names):
        raise ConfigError(f"{directory / SWEEP}: trials takes names of directories, each once")
    given["trials"] = tuple(names)
    return Sweep(directory=directory, **given)


def _found(directory: pathlib.Path) -> tuple[str, ...]:
    """Returns the trials that have a directory, the first first."""
    trials = directory / TRIALS
    folders = sorted(trials.iterdir()) if trials.is_dir() else []
    made = zip(storage.at_once(_written, folders), (folder.name for folder in folders), strict=True)
    return tuple(name for when, name in sorted(each for each in made if each[0]))


def _written(folder: pathlib.Path) -> float:
    """Returns when a trial was added, in seconds since 1970; 0 if the folder is of no trial."""
    try:
        return (folder / TRIAL).stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return 0.0


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = jsonfile.read(path)
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({why}); {_ANEW}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: cannot be read (it is no JSON object); {_ANEW}")
    return values


def _of(values: dict[str, Any], path: pathlib.Path, name: str) -> Any:
    """Returns a field of a file; raises ConfigError if it is missing, or of another type."""
    if not isinstance(value := values.get(name), _TYPES[name]):
        raise ConfigError(f"{path}: {name} is {value!r:.50}, takes a {_TYPES[name].__name__}")
    return value


def _write(path: pathlib.Path, values: dict[str, Any]) -> None:
    """Writes a file, whole or not at all."""
    try:
        place.of(path).put(path, (json.dumps(values, indent=2) + "\n").encode())
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from None
