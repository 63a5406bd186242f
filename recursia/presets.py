"""Configuration files and their presets: what there is, and what one gives.

A file has `get_config()`, or `get_config(preset)` and the names it takes as `PRESETS`.
"""

import ast
import difflib
import importlib.util
import inspect
import pathlib
import traceback
from collections.abc import Iterable
from types import ModuleType

import ml_collections

from recursia.errors import ConfigError

_SHARED = ("__init__", "base", "blocks")  # files of the folder that are no configurations


def shipped() -> tuple[str, ...]:
    """Returns the names of the shipped files, in order."""
    names = (path.stem for path in _folder().glob("*.py"))
    return tuple(sorted(name for name in names if name not in _SHARED))


def presets(name: str) -> tuple[str, ...]:
    """Returns what `--config=` takes of a file: "NAME:PRESET" for each preset, or its bare name.

    Args:
      name: a shipped file's bare name, or "FILE.py"; a preset after a colon is not read.

    Raises:
      ConfigError: if there is no such file, or it cannot be run.
    """
    file, _ = _split(name)
    known = _known(name, _run(name))
    return tuple(f"{file}:{preset}" for preset in known) or (file,)


def about(name: str) -> str:
    """Returns the first line of what a shipped file says of itself."""
    tree = ast.parse(_path(name).read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def read(name: str) -> ml_collections.ConfigDict:
    """Returns what `get_config` of a configuration file gives.

    Args:
      name: "FILE.py:PRESET", or a shipped file's bare name with its preset.

    Raises:
      ConfigError: if there is no such file or preset, or the file cannot be run.
    """
    file, preset = _split(name)
    module = _run(name)
    known = _known(name, module)
    if preset and known and preset not in known:
        raise ConfigError(f"--config={name}: no preset {preset!r}{hint(preset, known)}")
    try:
        takes = inspect.signature(module.get_config).parameters.values()
        if preset and not takes:
            raise ConfigError(f"--config={name}: has no presets; give --config={file}")
        if not preset and any(one.default is one.empty for one in takes):
            there = hint("", known) if known else ""
            raise ConfigError(f"--config={name}: name a preset: {file}:PRESET{there}")
        config = module.get_config(preset) if preset else module.get_config()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        raise _refusal(name, error) from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"--config={name}: get_config gave {type(config).__name__}, not ConfigDict"
        )
    return config


def hint(name: str, known: tuple[str, ...] | list[str]) -> str:
    """Returns the end of a refusal: the nearest name that is there, and all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    there = f"is {', '.join(known)}"
    return f"; did you mean {close[0]!r}? There {there}" if close else f"; there {there}"


def _split(name: str) -> tuple[str, str]:
    """Returns the file and the preset; a path may hold colons of its own."""
    file, ending, preset = name.rpartition(".py:")
    if ending:
        return f"{file}.py", preset
    file, _, preset = (name, "", "") if name.endswith(".py") else name.partition(":")
    return file, preset


def _run(name: str) -> ModuleType:
    """Returns a configuration file as a module."""
    try:
        path = _path(name)
        is_hidden = path.parent == _folder() and path.stem in _SHARED
        is_there = path.is_file() and not is_hidden
    except (OSError, RuntimeError) as error:  # a name that is too long, a home of no one
        raise ConfigError(f"--config={name}: {error}") from None
    if not is_there:
        known = hint(_split(name)[0], shipped())
        raise ConfigError(f"--config={name}: no file {path.name}{known}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec and spec.loader  # of a file that ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _refusal(name, error) from None
    return module


def _known(name: str, module: ModuleType) -> tuple[str, ...]:
    """Returns the presets that a file declares."""
    names = getattr(module, "PRESETS", ())
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigError(f"--config={name}: PRESETS is {names!r}, takes a tuple of names")
    return tuple(map(str, names))


def _refusal(name: str, error: BaseException) -> ConfigError:
    """Returns what a configuration file raised as one line, with the line it was raised at."""
    file = str(_path(name))
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    where = f"line {lines[-1]}: " if lines else ""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return ConfigError(f"--config={name}: {where}{what}")


def _path(name: str) -> pathlib.Path:
    file, _ = _split(name)
    return pathlib.Path(file).expanduser() if file.endswith(".py") else _folder() / f"{file}.py"


def _folder() -> pathlib.Path:
    import recursia.configs

    return pathlib.Path(recursia.configs.__path__[0])
