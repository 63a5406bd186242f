"""Reads documents from source files: what every kind of file is."""

import abc
import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

from recursia import buckets, console
from recursia.data import files, remote
from recursia.errors import DataError

OnError = Literal["stop", "skip"]


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
def _size_of_object(path: str) -> int:
    """Returns the bytes of an object, which is asked for once."""
    return remote.stamp(path)[0]
