"""The sinks that a configuration names."""

import importlib.util
import pathlib
from typing import Any

from recursia import dotted, modules, settings
from recursia.errors import ConfigError
from recursia.train.sinks.aside import Aside
from recursia.train.sinks.sink import Sink

_NEEDS = {"wandb": "wandb"}  # the library of a sink, which is an extra of the same name
_NO_CHOICE = ("json_lines", "aside")  # which every run has, or no run by itself


def opened(run: settings.Run, workdir: pathlib.Path, start: int) -> list[Sink]:
    """Returns the sinks of a run besides JSON Lines.

    Args:
      run: the settings.
      workdir: the run's directory.
      start: step from which the run goes on.

    Raises:
      ConfigError: as `check` does.
    """
    return [
        Aside(name, cls, workdir, start, run) if cls.IS_ASIDE else cls(workdir, start, run)
        for name, cls in check(run).items()
    ]


def check(run: settings.Run) -> dict[str, type[Sink]]:
    """Returns the classes that `log.sinks` names.

    Raises:
      ConfigError: for an unknown name, or a library that is not installed.
    """
    return {name: _class(name) for name in run.log.sinks}


def _class(name: str) -> type[Sink]:
    known = [each for each in modules.names(Sink) if each not in _NO_CHOICE]
    if name in known:
        library = _NEEDS.get(name)
        if library and importlib.util.find_spec(library) is None:
            raise ConfigError(f"config.log.sinks: {name!r} needs pip install 'recursia[{name}]'")
        cls: Any = modules.subclass(Sink, name)
        return cls
    if "." not in name:
        raise ConfigError(
            f"config.log.sinks: no sink {name!r}; takes {', '.join(known)}, or the dotted path of "
            "a class of yours, such as my_parts.Rows"
        )
    try:
        return dotted.subclass(Sink, name)
    except ConfigError as error:
        raise ConfigError(f"config.log.sinks: {error}") from None
