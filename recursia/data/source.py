"""Documents out of sources, each of a kind that says which files it reads.

A kind is a subclass of `Source` in a module of `recursia.data.sources`; that module is all it takes
to add one.
"""

import abc
import collections
import dataclasses
import functools
import glob
import hashlib
import importlib.resources
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from recursia import console
from recursia.data import files, sources
from recursia.errors import DataError

OnError = Literal["stop", "skip"]
BUNDLED = {f"bundled:{name}": f"{name}.jsonl.gz" for name in ("train", "validation")}


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, read in parts so that it need not be in memory whole.

    Attributes:
      parts: gives the text's parts anew at each call.
    """

    parts: Callable[[], Iterator[str]]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.parts())


def one_piece(text: str) -> Document:
    """Returns a document that is in memory."""
    return Document(functools.partial(iter, (text,)))


class BrokenError(DataError):
    """Why one record of a source is no document.

    Attributes:
      where: file and line or row, for a user to find it.
    """

    def __init__(self, where: str, reason: str):
        super().__init__(f"{where}: {reason}; fix it, or prepare with on_error=skip.")
        self.where = where


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """A file of documents; a kind says which suffixes it reads, and how.

    Attributes:
      path: of the file.
      SUFFIXES: in lower case, of the files that the kind reads.
    """

    path: str
    SUFFIXES: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def records(self, text_field: str) -> Iterator[Document | BrokenError]:
        """Yields each record in order, or why it is no document.

        Args:
          text_field: name of what holds the text, where a record has several fields.

        Raises:
          DataError: if the file cannot be read.
          BrokenError: while the parts of a document are read, if a later one is no text.
        """

    @property
    def name(self) -> str:
        """What prepared data calls it: no folder."""
        return os.path.basename(self.path)

    @property
    def size(self) -> int:
        """The bytes that `fingerprint` reads; 0 if the file is missing."""
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    def fingerprint(self, advance: Callable[[float], None]) -> str:
        """Returns the sha256, in hex, of the file's bytes.

        Args:
          advance: is told of the bytes read, some at a time.

        Raises:
          DataError: if the file cannot be read.
        """
        digest = hashlib.sha256()
        try:
            with open(self.path, "rb") as file:
                while chunk := file.read(files.CHUNK):
                    digest.update(chunk)
                    advance(len(chunk))
        except OSError as error:
            raise files.unreadable(self.path, error) from None
        return digest.hexdigest()

    def documents(
        self, *, on_error: OnError, text_field: str = "text", warn: bool = True
    ) -> Iterator[Document]:
        """Yields the documents. A byte-order mark at the start of a file is no part of a text.

        Args:
          on_error: "stop" raises at the first broken record; "skip" leaves it out.
          text_field: see `records`.
          warn: whether to print, at the end, how many were skipped to stderr.

        Raises:
          DataError: if the file cannot be read, holds no document, or is broken under "stop"; for
            a document in parts that may come while they are read.
        """
        skipped, found = [], 0
        for document in self.records(text_field):
            try:
                if isinstance(document, BrokenError):
                    raise document
                if on_error == "skip":  # parts are used before a later one proves broken
                    collections.deque(document.parts(), maxlen=0)
            except BrokenError as error:
                if on_error == "stop":
                    raise
                skipped.append(error.where)
            else:
                found += 1
                yield document
        if skipped and warn:
            console.say(f"{self.path}: skipped {len(skipped)} broken, the first at {skipped[0]}")
        if not found:
            why = f"{len(skipped)} broken skipped" if skipped else "it is empty"
            raise DataError(
                f"{self.path}: 0 documents ({why}); give it text or leave it out of the inputs."
            )


@functools.cache
def kinds() -> dict[str, type[Source]]:
    """Returns the kind of source that reads each suffix, in the order of the kinds' modules."""
    found = {}
    for module in pkgutil.iter_modules(sources.__path__, f"{sources.__name__}."):
        names = vars(importlib.import_module(module.name)).values()
        for kind in (n for n in names if isinstance(n, type) and issubclass(n, Source)):
            if kind is not Source:
                found |= dict.fromkeys(kind.SUFFIXES, kind)
    return found


def of(path: str) -> Source:
    """Returns the source that a file is.

    Raises:
      DataError: if its suffix is that of no kind, or what its kind needs is not installed.
    """
    for suffix, kind in kinds().items():
        if path.lower().endswith(suffix):
            return kind(path)
    raise DataError(f"{path}: not a kind of file that is read; use {', '.join(kinds())}.")


def expand(paths: Iterable[str]) -> tuple[Source, ...]:
    """Returns the sources that `paths` name, in the order given and sorted within each.

    Args:
      paths: files, glob patterns (`**` crosses folders), folders (every accepted file directly in
        them), each with `~` for the home; or "bundled:train" and "bundled:validation", the demo
        corpus.

    Raises:
      DataError: if a path names nothing, is of no kind that is read, or comes twice.
    """
    found = [of(file) for path in paths for file in _expand(path)]
    seen = set()
    for source in found:
        if (real := os.path.realpath(source.path)) in seen:
            raise DataError(f"{source.path}: named 2 times by the inputs; name it 1 time.")
        seen.add(real)
    return tuple(found)


def _expand(path: str) -> list[str]:
    path = os.path.expanduser(path)
    if path.startswith("bundled:"):
        if path not in BUNDLED:
            raise DataError(f"{path}: no such corpus; the bundled ones are {', '.join(BUNDLED)}.")
        return [str(_corpus() / BUNDLED[path])]
    if os.path.isdir(path):
        names = sorted(n for n in os.listdir(path) if n.lower().endswith((*kinds(),)))
        files = [os.path.join(path, n) for n in names if os.path.isfile(os.path.join(path, n))]
        if not files:
            raise DataError(f"{path}: 0 files in this folder end in {', '.join(kinds())}.")
        return files
    if os.path.exists(path):
        return [path]
    if not glob.has_magic(path):
        raise DataError(f"{path}: does not exist; give a file, a folder or a glob pattern.")
    files = sorted(f for f in glob.glob(path, recursive=True) if os.path.isfile(f))
    if not files:
        raise DataError(f"{path}: 0 files match this pattern; give one that matches at least 1.")
    return files


def _corpus() -> Path:
    try:
        return Path(str(importlib.resources.files("recursia.corpus")))
    except ModuleNotFoundError:  # run from the source tree, not installed
        return Path(__file__).resolve().parents[2] / "corpus"
