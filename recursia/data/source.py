"""Reads documents from source files; the suffix of a file says its kind.

A kind is a subclass of `Source` in a module of `recursia.data.sources`. Adding that module adds
the kind. A class of the user's own is named before the file: `MODULE.CLASS:FILE`.
"""

import abc
import collections
import dataclasses
import functools
import glob
import hashlib
import importlib.resources
import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from recursia import buckets, console, dotted
from recursia.data import files, remote, sources
from recursia.errors import ConfigError, DataError

OnError = Literal["stop", "skip"]
OWN = r"((?!\d)\w+(?:\.(?!\d)\w+)+):(.+)"  # the class and the file of a kind of the user's own
BUNDLED = {f"bundled:{name}": f"{name}.jsonl.gz" for name in ("train", "validation")}


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, read in chunks so that it may be larger than memory.

    Attributes:
      chunks: yields the text from its start, in chunks; may be called again.
    """

    chunks: Callable[[], Iterator[str]]

    @property
    def text(self) -> str:
        """The text, in memory."""
        return "".join(self.chunks())


def in_memory(text: str) -> Document:
    """Returns a document of one chunk."""
    return Document(functools.partial(iter, (text,)))


class BrokenError(DataError):
    """Says why a record of a source is not a document.

    Attributes:
      where: file and line or row of the record.
    """

    def __init__(self, where: str, reason: str):
        super().__init__(f"{where}: {reason}; fix it, or prepare with on_error=skip.")
        self.where = where


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """A file of documents; a subclass reads one kind of file.

    Attributes:
      path: path of the file.
      SUFFIXES: suffixes of the files that the kind reads, in lower case; or, with a colon at its
        end, how what it reads begins. A kind that has none is named for each file or folder.
    """

    path: str
    SUFFIXES: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def records(self, text_field: str) -> Iterator[Document | BrokenError]:
        """Yields each record in order: a document, or the error that says why it is none.

        Args:
          text_field: name of the field that holds the text, if records have fields.

        Raises:
          DataError: if the file cannot be read.
          BrokenError: while a document is read, at a chunk that is not text.
        """

    @property
    def name(self) -> str:
        """The name of the file in prepared data: its path without folders."""
        return f"{self._class}{os.path.basename(self.path)}"

    @property
    def named(self) -> str:
        """The path as `of` takes it."""
        return f"{self._class}{self.path}"

    @property
    def _class(self) -> str:
        cls = type(self)
        is_own = not cls.__module__.startswith("recursia.")
        return f"{cls.__module__}.{cls.__qualname__}:" if is_own else ""

    @property
    def real(self) -> str:
        """The path without links."""
        return self.path if buckets.is_place(self.path) else os.path.realpath(self.path)

    @property
    def size(self) -> int:
        """Bytes of the file; 0 if it is missing."""
        if buckets.is_place(self.path):
            return _size_of_object(self.path)
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    def fingerprint(self, advance: Callable[[float], None]) -> str:
        """Returns the sha256, in hex, of the file's bytes.

        Args:
          advance: called with the number of bytes read since its last call.

        Raises:
          DataError: if the file cannot be read.
        """
        digest = hashlib.sha256()
        try:
            with files.plain(self.path) as file:
                while chunk := file.read(files.CHUNK):
                    digest.update(chunk)
                    advance(len(chunk))
        except OSError as error:
            raise files.unreadable(self.path, error) from None
        return digest.hexdigest()

    @property
    def stamp(self) -> tuple[int, int | str]:
        """What changes with the file: its bytes, and its time of modification in nanoseconds.

        Of an object in a bucket, its generation or ETag in place of a time.
        """
        try:
            if buckets.is_place(self.path):
                return remote.stamp(self.path)
            found = os.stat(self.path)
        except OSError as error:
            raise files.unreadable(self.path, error) from None
        return found.st_size, found.st_mtime_ns

    def parts(self, num_bytes: int) -> tuple["Source", ...]:
        """Returns sources of runs of the records, in order, that can be read by themselves.

        Args:
          num_bytes: wanted bytes of the file in each; a kind that must be read from its start gives
            itself alone.
        """
        del num_bytes
        return (self,)

    def read(self, on_error: OnError, text_field: str, broken: list[str]) -> Iterator[Document]:
        """Yields the documents; with "skip", appends where each broken record is to `broken`.

        Raises:
          DataError: if the file cannot be read; with "stop", at a broken record, which may show
            only while the chunks of its document are read.
        """
        for document in self.records(text_field):
            try:
                if isinstance(document, BrokenError):
                    raise document
                if on_error == "skip":  # read it to its end: a later chunk may be broken
                    collections.deque(document.chunks(), maxlen=0)
            except BrokenError as error:
                if on_error == "stop":
                    raise
                broken.append(error.where)
            else:
                yield document

    def documents(
        self, *, on_error: OnError, text_field: str = "text", warn: bool = True
    ) -> Iterator[Document]:
        """Yields the documents, without the byte-order mark that a file may start with.

        Args:
          on_error: "stop" raises at the first broken record; "skip" leaves it out.
          text_field: see `records`.
          warn: whether to print to stderr, at the end, how many records were skipped.

        Raises:
          DataError: if the file cannot be read or holds no document; with "stop", at a broken
            record, which may show only while the chunks of its document are read.
        """
        broken, count = list[str](), 0
        for document in self.read(on_error, text_field, broken):
            count += 1
            yield document
        if warn:
            self.say_skipped(len(broken), broken[:1])
        self.check_count(count, len(broken))

    def say_skipped(self, num_broken: int, first: list[str]) -> None:
        """Prints how many records were skipped, if any, and where the first is."""
        if num_broken:
            console.say(f"{self.path}: skipped {num_broken} broken, the first at {first[0]}")

    def check_count(self, count: int, num_broken: int) -> None:
        """Raises DataError if the file has no documents."""
        if not count:
            why = f"{num_broken} broken skipped" if num_broken else "it is empty"
            raise DataError(
                f"{self.path}: 0 documents ({why}); give it text or leave it out of the inputs."
            )


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


@functools.cache
def _size_of_object(path: str) -> int:
    """Returns the bytes of an object, which is asked for once."""
    return remote.stamp(path)[0]


def _corpus() -> Path:
    try:
        return Path(str(importlib.resources.files("recursia.corpus")))
    except ModuleNotFoundError:  # run from the source tree, not installed
        return Path(__file__).resolve().parents[2] / "corpus"
