"""Classes of a user's own files, found by dotted paths such as `my_parts.Half`.

A path names a class of a module, or a module that defines one, on Python's path or in the current
folder. Nothing is imported from a directory that holds a run, a sweep or a model, or from below
one: whoever made it may have written the path and the module.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import pathlib
import sys
import traceback
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from recursia import jsonfile
from recursia.errors import ConfigError

_SIGNS = {"model", "model_type", "architectures"}  # of a run's or a model's config.json


def subclass(base: type, path: str) -> type:
    """Returns the subclass of a base class that a dotted path names.

    Args:
      base: the base class.
      path: "MODULE.CLASS", or a module that defines one such class.

    Raises:
      ConfigError: if there is none, or its module lies in a run's directory or cannot be imported.
    """
    module, names = _module(path)
    wanted = f"subclass of {base.__module__}.{base.__name__}"
    is_own = lambda value: isinstance(value, type) and issubclass(value, base) and value is not base
    if names:
        found: Any = functools.reduce(lambda of, name: getattr(of, name, None), names, module)
        if not is_own(found):
            what = "no such name" if found is None else f"no {wanted}"
            raise ConfigError(f"{path}: is {what} in {_file(module)}")
        return found
    every = [c for c in vars(module).values() if is_own(c) and c.__module__ == module.__name__]
    if len(every) != 1:
        several = " and ".join(f"{path}.{c.__name__}" for c in every)
        what = f"defines {several}; name one of them" if every else f"defines no {wanted}"
        raise ConfigError(f"{path}: {_file(module)} {what}")
    return every[0]


def look_here() -> None:
    """Lets modules of the current folder be imported, after all others of the same name."""
    with contextlib.suppress(FileNotFoundError):
        here = os.getcwd()
        if not sys.flags.safe_path and not {"", here} & set(sys.path) and not _holder(here):
            sys.path.append(here)


def raised(error: BaseException, file: str) -> str:
    """Returns an exception in one line, with the number of the last line of a file that raised it.

    Args:
      error: the exception.
      file: path of the file.
    """
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    where = f"line {lines[-1]}: " if lines else ""
    return " ".join(f"{where}{type(error).__name__}: {error}".split())


def _module(path: str) -> tuple[ModuleType, list[str]]:
    """Returns the innermost module that a path names, and the names that are left of the path."""
    left, module = path.split("."), None
    if not all(map(str.isidentifier, left)):
        raise ConfigError(f"{path}: is no dotted path, such as my_parts.Half")
    if left[0] in sys.stdlib_module_names:  # some of which do something when they are imported
        raise ConfigError(f"{path}: {left[0]!r} is a module of Python itself; name one of yours")
    look_here()
    importlib.invalidate_caches()  # a file may have been written a moment ago
    while left and (inner := _imported(path, module, left[0])) is not None:
        module, left = inner, left[1:]
    if module is None:
        raise ConfigError(
            f"{path}: no module {left[0]!r} in {_here()} or on Python's path; go to the folder of "
            f"{left[0]}.py, or name it in PYTHONPATH"
        )
    return module, left


def _imported(path: str, parent: ModuleType | None, name: str) -> ModuleType | None:
    """Returns a module, imported after a look at where it lies; None if there is none."""
    full = f"{parent.__name__}.{name}" if parent else name
    if full in sys.modules:
        return sys.modules[full]
    try:
        spec = importlib.util.find_spec(full)
    except (ImportError, ValueError, OSError):  # such as: the parent is no package
        return None
    if spec is None:
        return None
    for place in _places(spec):
        if holder := _holder(place):
            raise ConfigError(
                f"{path}: {place} lies in {holder}, which holds a run, a sweep or a model, and "
                "nothing there is executed; move the file to a folder of your own"
            )
    try:
        return importlib.import_module(full)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        file = str(spec.origin)
        raise ConfigError(f"{path}: {file}: {raised(error, file)}") from None


def _places(spec: ModuleSpec) -> list[str]:
    """Returns the file of a module, and the folders of a package."""
    file = [spec.origin] if spec.has_location and spec.origin else []
    return [*file, *(spec.submodule_search_locations or [])]


def _holder(place: str) -> pathlib.Path | None:
    """Returns the directory of a run, a sweep or a model in which a file or folder lies."""
    real = pathlib.Path(place).resolve()
    return next((folder for folder in (real, *real.parents) if _is_holder(folder)), None)


def _is_holder(folder: pathlib.Path) -> bool:
    if (folder / "sweep.json").is_file():
        return True
    try:
        found = jsonfile.read(folder / "config.json")
    except (OSError, ValueError):  # no reader of runs or models takes it either
        return False
    return isinstance(found, dict) and bool(_SIGNS & found.keys())


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or module.__name__


def _here() -> str:
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return "the current folder, which is gone"
    return f"{here}, which holds a run and is not searched," if _holder(here) else here
