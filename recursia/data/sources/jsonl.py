"""JSON Lines: each line is an object, and one of its fields is a document."""

import dataclasses
import io
import itertools
from collections.abc import Iterator

from recursia import buckets
from recursia.data import files
from recursia.data import text as text_lib
from recursia.data.source import BrokenError, Document, Source, in_memory

_LINE = 1 << 28  # most bytes of a line, since a line is read into memory


@dataclasses.dataclass(frozen=True)
class JsonLines(Source):
    """A file of JSON lines; only line feeds end a line, and blank lines are ignored.

    Attributes:
      start: first byte of the file that may begin a line.
      stop: byte from which on lines are left to others; None reads to the end.
    """

    SUFFIXES = tuple(".jsonl" + compression for compression in files.COMPRESSIONS)
    start: int = 0
    stop: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the file, or of the part of it."""
        return super().size if self.stop is None else self.stop - self.start

    def parts(self, num_bytes: int) -> tuple[Source, ...]:
        """Returns parts of a plain file on disk; each reads the lines that begin in it."""
        is_plain = self.path.lower().endswith(".jsonl") and not buckets.is_place(self.path)
        if not is_plain or self.size < 2 * num_bytes:
            return (self,)
        places = [*range(0, self.size - num_bytes + 1, num_bytes), self.size]
        return tuple(JsonLines(self.path, *ends) for ends in itertools.pairwise(places))

    def records(self, text_field: str) -> Iterator[Document | BrokenError]:
        """Yields each line that is not blank; `text_field` is the key of its text."""
        for number, raw in self._lines():
            if len(raw) > _LINE:
                yield self._broken(number, f"longer than {_LINE} bytes, the most of a line")
            elif raw.strip():
                try:
                    yield in_memory(_parse(raw, text_field))
                except text_lib.NotTextError as error:
                    yield self._broken(number, str(error))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yields the lines that begin in the part, numbered from 1, too long ones cut."""
        with files.opened(self.path) as file:
            if self.start:
                file.seek(self.start - 1)
                _skip(file)
            for number in itertools.count(1):
                if self.stop is not None and file.tell() >= self.stop:
                    return
                if not (raw := file.readline(_LINE + 1)):
                    return
                if len(raw) > _LINE and not raw.endswith(b"\n"):
                    _skip(file)
                yield number, raw

    def _broken(self, number: int, reason: str) -> BrokenError:
        """Returns the error of a line of the part, numbered in the file."""
        with files.opened(self.path) as file:
            whole, rest = divmod(max(self.start - 1, 0), files.CHUNK)
            before = sum(file.read(files.CHUNK).count(b"\n") for _ in range(whole))
            before += file.read(rest).count(b"\n") + bool(self.start)
        return BrokenError(f"{self.path}:{before + number}", reason)


def _skip(file: io.BufferedIOBase) -> None:
    """Reads to the end of a line."""
    while (raw := file.readline(files.CHUNK)) and not raw.endswith(b"\n"):
        pass


def _parse(raw: bytes, text_field: str) -> str:
    """Returns the text of one line."""
    wrong = text_lib.NotTextError
    row = text_lib.json_object(raw)
    if text_field not in row:
        raise wrong(f"no field {text_field!r}, text_field may name one of {sorted(row)[:8]}")
    if not isinstance(row[text_field], str):
        raise wrong(f"field {text_field!r} is {type(row[text_field]).__name__}, not text")
    if (place := text_lib.lone_surrogate(row[text_field])) is not None:  # JSON can escape half one
        raise wrong(f"a lone surrogate at character {place}")
    return row[text_field]
