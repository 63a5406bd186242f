"""Configuration files and their presets.

A file defines `get_config()`, or `get_config(preset)` and `PRESETS`, the names of its presets.
"""

import ast
import difflib
import importlib.util
import inspect
import pathlib
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

import ml_collections

from recursia import dotted
from recursia.errors import ConfigError

_SHARED = ("__init__", "axes", "base", "blocks")  # shipped files that are not configurations


def every() -> tuple[str, ...]:
    """Returns the names of all shipped configuration files, in alphabetical order."""
    paths = [path for path in _folder().rglob("*.py") if path.stem not in _SHARED]
    return tuple(sorted(path.relative_to(_folder()).as_posix()[:-3] for path in paths))


def shipped(folder: str = "") -> tuple[str, ...]:
    """Returns the names of the shipped configuration files of systems, or those of a folder."""
    return tuple(name for name in every() if name.rpartition("/")[0] == folder)


def presets(name: str) -> tuple[str, ...]:
    """Returns the values of `--config=` for a file: "NAME:PRESET" each, or "NAME" without presets.

    Args:
      name: a shipped file's bare name, or "FILE.py"; a preset after a colon is ignored.

    Raises:
      ConfigError: if the file does not exist or raises.
    """
    file, _ = split(name)
    known = _known(name, _run(name))
    return tuple(f"{file}:{preset}" for preset in known) or (file,)


def about(name: str) -> str:
    """Returns the first line of a shipped file's docstring."""
    return _docstring(name).partition("\n")[0]


def checked_against(name: str) -> str:
    """Returns what a shipped system's outputs were compared with, as its file's docstring says."""
    said = _docstring(name).partition("Checked against: ")[2].partition("\n\n")[0]
    return " ".join(said.split()).removesuffix(".")


def _docstring(name: str) -> str:
    tree = ast.parse(location(name).read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or ""


def read(name: str) -> ml_collections.ConfigDict:
    """Returns the result of a configuration file's `get_config`.

    Args:
      name: "FILE.py:PRESET", or a shipped file's bare name with its preset.

    Raises:
      ConfigError: if the file or the preset does not exist, or the file raises.
    """
    file, preset = split(name)
    module = _run(name)
    known = _known(name, module)
    if preset and known and preset not in known:
        raise ConfigError(f"--config={name}: no preset {preset!r}{hint(preset, known)}")
    try:
        parameters = inspect.signature(module.get_config).parameters.values()
        if preset and not parameters:
            raise ConfigError(f"--config={name}: has no presets; give --config={file}")
        if not preset and any(p.default is p.empty for p in parameters):
            choices = hint("", known) if known else ""
            raise ConfigError(f"--config={name}: name a preset: {file}:PRESET{choices}")
        config = module.get_config(preset) if preset else module.get_config()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        raise refusal(name, error) from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"--config={name}: get_config returned {type(config).__name__}, not ConfigDict"
        )
    return config


def member(name: str, of: str) -> Any:
    """Returns what else a configuration file defines under a name; None if it does not.

    Raises:
      ConfigError: if the file does not exist or raises.
    """
    return getattr(_run(name), of, None)


def is_shipped(name: str) -> bool:
    """Returns whether a configuration file is one of those that are shipped."""
    return location(name).resolve().is_relative_to(_folder().resolve())


def hint(name: str, known: tuple[str, ...] | list[str]) -> str:
    """Returns the end of an error message: the nearest known name, and all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known)
    if not close:
        return f"; choices are {listed}"
    return f"; did you mean {close[0]!r}? Choices are {listed}"


def _nearest(file: str) -> str:
    """Returns the shipped file that is nearest to a name, and those beside it."""
    if inside := shipped(file.rstrip("/")):
        return hint("", inside)
    close = difflib.get_close_matches(file.removesuffix(".py"), every(), n=1)
    folder = (close or [file])[0].rpartition("/")[0]
    return hint(file, shipped(folder) or every())


def split(name: str) -> tuple[str, str]:
    """Returns the file and the preset of a name; the file's path may contain colons."""
    file, ending, preset = name.rpartition(".py:")
    if ending:
        return f"{file}.py", preset
    file, _, preset = (name, "", "") if name.endswith(".py") else name.partition(":")
    return file, preset


class _Uncached(SourceFileLoader):
    """Reads a file's text, not its bytecode, and leaves none beside it.

    Python takes bytecode for current when the text's size and second of change are the same.
    """

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _run(name: str) -> ModuleType:
    """Returns a configuration file as a module."""
    try:
        path = location(name)
        is_shared = path.is_relative_to(_folder()) and path.stem in _SHARED
        is_configuration = path.is_file() and not is_shared
    except (OSError, RuntimeError) as error:  # a name that is too long, a user without a home
        raise ConfigError(f"--config={name}: {error}") from None
    if not is_configuration:
        shown = path.name if path.is_relative_to(_folder()) else path
        which = "names no file" if path.name == ".py" else f"no file {shown}"
        raise ConfigError(f"--config={name}: {which}{_nearest(split(name)[0])}")
    stem = f"config_{path.stem}"
    spec = importlib.util.spec_from_file_location(stem, path, loader=_Uncached(stem, str(path)))
    assert spec and spec.loader  # of a file that ends in .py
    module = importlib.util.module_from_spec(spec)
    if not is_shipped(name):
        dotted.look_here()  # it may import files beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise refusal(name, error) from None
    return module


def _known(name: str, module: ModuleType) -> tuple[str, ...]:
    """Returns the presets that a file declares."""
    names = getattr(module, "PRESETS", ())
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigError(f"--config={name}: PRESETS is {names!r}, takes a tuple of names")
    return tuple(map(str, names))


def refusal(name: str, error: BaseException) -> ConfigError:
    """Returns an exception of a configuration file as an error of one line, with its number."""
    return ConfigError(f"--config={name}: {dotted.raised(error, str(location(name)))}")


def location(name: str) -> pathlib.Path:
    """Returns the path of a configuration file, which may not exist."""
    file, _ = split(name)
    return pathlib.Path(file).expanduser() if file.endswith(".py") else _folder() / f"{file}.py"


def _folder() -> pathlib.Path:
    import recursia.configs

    return pathlib.Path(recursia.configs.__path__[0])
