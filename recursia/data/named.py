"""The source files that a path names: a file, a folder, a pattern; the suffix says the kind.

A kind is a subclass of `Source` in a module of `recursia.data.sources`. Adding that module adds
the kind. A class of the user's own is named before the file: `MODULE.CLASS:FILE`.
"""

import functools
import glob
import importlib.resources
import inspect
import os
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path

from recursia import buckets, dotted
from recursia.data import sources
from recursia.data.source import Source
from recursia.errors import ConfigError, DataError

OWN = r"((?!\d)\w+(?:\.(?!\d)\w+)+):(.+)"  # the class and the file of a kind of the user's own
BUNDLED = {f"bundled:{name}": f"{name}.jsonl.gz" for name in ("train", "validation")}


@functools.cache
def kinds() -> dict[str, type[Source]]:
    """Returns the kind of source that reads each suffix, in the order of the kinds' modules."""
    kinds_by_suffix = {}
    for module in pkgutil.iter_modules(sources.__path__, f"{sources.__name__}."):
        names = vars(importlib.import_module(module.name)).values()
        for kind in (n for n in names if isinstance(n, type) and issubclass(n, Source)):
            if kind is not Source:
                kinds_by_suffix |= dict.fromkeys(kind.SUFFIXES, kind)
    return kinds_by_suffix


def of(path: str) -> Source:
    """Returns the source of a file.

    Raises:
      ConfigError: if it names a class that is not there or lacks something.
      DataError: if no kind reads its suffix, or a library that its kind needs is not installed.
    """
    if own := _own(path):
        cls, file = own
        return cls(file)
    for suffix, kind in kinds().items():
        is_of = path.startswith if suffix.endswith(":") else path.lower().endswith
        if is_of(suffix):
            return kind(path)
    known = ", ".join(kinds())
    raise DataError(f"{path}: not a kind of file that is read; use {known}, or MODULE.CLASS:FILE.")


def _own(path: str) -> tuple[type[Source], str] | None:
    """Returns the class of the user's own that a path names, and the rest of the path."""
    named = re.fullmatch(OWN, path)
    if named is None or os.path.exists(path):  # a file may be called so
        return None
    cls: type[Source] = dotted.subclass(Source, named[1])
    if inspect.isabstract(cls):
        raise ConfigError(f"{named[1]}: does not define records, as every Source")
    return cls, named[2]


def expand(paths: Iterable[str]) -> tuple[Source, ...]:
    """Returns the sources that `paths` name, in the order given and sorted within each.

    Args:
      paths: files, glob patterns (`**` crosses folders) and folders (for every readable file
        directly in them), where `~` is the home folder; the same of a bucket, where only the last
        part is a pattern; the same after `MODULE.CLASS:`; `hf:` and a data set
        (`recursia.data.sources.huggingface`); or "bundled:train" and "bundled:validation", the
        demo corpus.

    Raises:
      DataError: if a path names no file, or a file that no kind reads, or a file named before.
    """
    expanded = [of(file) for path in paths for file in _expand(path)]
    seen = set()
    for source in expanded:
        if (real := source.real) in seen:
            raise DataError(f"{source.path}: named 2 times by the inputs; name it 1 time.")
        seen.add(real)
    return tuple(expanded)


def _expand(path: str, suffixes: tuple[str, ...] = ()) -> list[str]:
    """Returns the files that a path names; of a folder, those with some suffixes."""
    if own := _own(path):
        prefix = path.removesuffix(own[1])
        return [prefix + file for file in _expand(own[1], own[0].SUFFIXES or ("",))]
    path = os.path.expanduser(path)
    suffixes = suffixes or (*kinds(),)
    if path.startswith(tuple(suffix for suffix in kinds() if suffix.endswith(":"))):
        return [path]
    if path.startswith("bundled:"):
        if path not in BUNDLED:
            raise DataError(f"{path}: no such corpus; the bundled ones are {', '.join(BUNDLED)}.")
        return [str(_corpus() / BUNDLED[path])]
    place = buckets.path(path)
    if place.is_dir():
        found = sorted(place.iterdir(), key=lambda each: each.name)
        found = [each for each in found if each.name.lower().endswith(suffixes)]
        paths = [os.path.join(path, each.name) for each in found if each.is_file()]
        if not paths:
            raise DataError(f"{path}: 0 files in this folder end in {', '.join(suffixes)}.")
        return paths
    if buckets.is_place(path) and glob.has_magic(path):
        folder, _, pattern = path.rpartition("/")
        paths = [str(each) for each in buckets.path(folder).glob(pattern)]
        if not paths:
            raise DataError(f"{path}: 0 objects match this pattern; give one that matches some.")
        return paths
    if place.exists():
        return [path]
    if not glob.has_magic(path):
        raise DataError(f"{path}: does not exist; give a file, a folder or a glob pattern.")
    paths = sorted(f for f in glob.glob(path, recursive=True) if os.path.isfile(f))
    if not paths:
        raise DataError(f"{path}: 0 files match this pattern; give one that matches at least 1.")
    return paths


def _corpus() -> Path:
    try:
        return Path(str(importlib.resources.files("recursia.corpus")))
    except ModuleNotFoundError:  # run from the source tree, not installed
        return Path(__file__).resolve().parents[2] / "corpus"
