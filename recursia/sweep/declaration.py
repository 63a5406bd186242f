"""The declaration of a sweep: what a configuration file says beside its `get_config`.

`sweep(add)`, or `sweep(add, preset)`, calls `add(**overrides)` for each trial; `search(trial)`
returns the overrides of one trial of an adaptive search, whose settings are `SEARCH`. Two names
among overrides are reserved: `config`, another base, and `labels`, which name a trial in tables.
"""

import dataclasses
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from recursia import config, console, presets, settings
from recursia.errors import ConfigError
from recursia.sweep import trial
from recursia.sweep.search import Search
from recursia.sweep.trial import Trial

SWEEP = "sweep.json"  # file of a sweep's directory, which says what was declared


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a sweep consists of.

    Attributes:
      config: the file and its preset, as `--config` takes them, with the file's absolute path.
      digest: SHA-256 of the file.
      overrides: that were typed, for all trials.
      trials: in the order of their declaration; none of an adaptive search.
      search: the settings of an adaptive search; None if all trials are known.
    """

    config: str
    digest: str
    overrides: dict[str, str]
    trials: tuple[Trial, ...]
    search: Search | None

    def suggested(self, asked: Any) -> Trial:
        """Returns the trial that the file's `search` makes of a trial of Optuna.

        Raises:
          ConfigError: if it raises, or for a mistake in its overrides.
        """
        search = presets.member(self.config, "search")
        try:
            given = search(asked)
        except Exception as error:
            raise presets.refusal(self.config, error) from None
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"--config={self.config}: search returned {type(given).__name__}, not overrides"
            )
        return _resolved(self.config, dict(given), self.overrides, "search")[0]


def read(name: str, typed: Mapping[str, str]) -> Declaration:
    """Returns what a configuration file declares.

    Args:
      name: "FILE.py:PRESET", or a shipped name.
      typed: overrides of all trials.

    Raises:
      ConfigError: if the file declares no sweep, none that can be run, or two equal trials.
    """
    holds = lambda file: os.path.isfile(os.path.join(os.path.expanduser(name), file))
    if holds(SWEEP):
        raise ConfigError(
            f"--config={name}: is a sweep's directory; give recursia sweep resume --workdir={name}"
        )
    if config.is_run(name):
        raise ConfigError(f"--config={name}: is a run; give a FILE.py that defines sweep(add)")
    sweep, search = (presets.member(name, of) for of in ("sweep", "search"))
    if callable(sweep) and callable(search):
        raise ConfigError(f"--config={name}: defines both sweep and search; define one of the two")
    if not callable(sweep) and not callable(search):
        raise ConfigError(
            f"--config={name}: defines neither sweep(add) nor search(trial); define one of the "
            f"two, or take a shipped sweep: {', '.join(presets.shipped('sweeps'))}"
        )
    digest = hashlib.sha256(presets.location(name).read_bytes()).hexdigest()
    placed, overrides = trial.placed(name), dict(typed)
    if callable(search):
        config.load(name, overrides)
        return Declaration(placed, digest, overrides, (), _settings(name))
    presets.read(name)  # refuses a preset that the file does not have
    added = _added(name, sweep)
    with console.doing(f"reading {len(added)} trials"):
        trials = _distinct(name, (_resolved(name, *each) for each in _numbered(added, overrides)))
    return Declaration(placed, digest, overrides, trials, None)


def _numbered(added: list[dict[str, Any]], typed: dict[str, str]) -> Iterable[tuple]:
    return ((given, typed, f"trial {i}") for i, given in enumerate(added, 1))


def _settings(name: str) -> Search:
    found = presets.member(name, "SEARCH")
    if not isinstance(found, Search):
        raise ConfigError(f"--config={name}: SEARCH is {found!r}, takes recursia.sweep.Search(...)")
    return found


def _added(name: str, sweep: Callable) -> list[dict[str, Any]]:
    """Returns what a sweep adds, in order."""
    added: list[dict[str, Any]] = []

    def add(**overrides: Any) -> None:
        added.append(overrides)

    preset = presets.split(name)[1]
    try:
        sweep(*(add, preset)[: len(inspect.signature(sweep).parameters)])
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        raise presets.refusal(name, error) from None
    if not added:
        raise ConfigError(f"--config={name}: its sweep adds no trial")
    return added


def _resolved(
    name: str, given: dict[str, Any], typed: dict[str, str], which: str
) -> tuple[Trial, settings.Run]:
    base, labels = given.pop("config", name), given.pop("labels", {})
    try:
        if not isinstance(base, str):
            raise ConfigError(f"config={base!r}: takes the name of a configuration")
        if not isinstance(labels, dict) or json.loads(json.dumps(labels)) != labels:
            raise ConfigError(f"labels={labels!r}: takes a mapping of names to plain values")
        return trial.resolve(base, given, typed, labels)
    except ConfigError as error:
        raise ConfigError(f"--config={name}: {which}: {error}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--config={name}: {which}: labels={labels!r}: {error}") from None


def _distinct(name: str, resolved: Iterable[tuple[Trial, settings.Run]]) -> tuple[Trial, ...]:
    """Returns trials, no two of which would run alike."""
    trials: list[Trial] = []
    seen: dict[str, int] = {}
    for i, (each, run) in enumerate(resolved, 1):
        for key in (each.name, json.dumps(config.to_dict(run), sort_keys=True)):
            if seen.setdefault(key, i) != i:
                raise ConfigError(
                    f"--config={name}: trials {seen[key]} and {i} are equal, "
                    f"{', '.join(f'{f}={v}' for f, v in each.overrides.items()) or each.config}; "
                    "labels and fields of log do not tell trials apart"
                )
        trials.append(each)
    return tuple(trials)
