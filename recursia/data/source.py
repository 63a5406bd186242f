"""Documents out of plain text and JSON Lines files, gzip or Zstandard compressed or not."""

import collections
import contextlib
import dataclasses
import functools
import glob
import gzip
import importlib.resources
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Literal

import zstandard

from recursia import console
from recursia.data import text as text_lib
from recursia.errors import DataError

OnError = Literal["stop", "skip"]
_PACKED = ("", ".gz", ".zst")
_TEXT_ENDINGS = tuple(".txt" + packed for packed in _PACKED)
ENDINGS = (*_TEXT_ENDINGS, *(".jsonl" + packed for packed in _PACKED))
BUNDLED = {f"bundled:{name}": f"{name}.jsonl.gz" for name in ("train", "validation")}
_CHUNK = 1 << 20  # bytes read at a time
_PACKED_CHUNK = 1 << 14  # of Zstandard, which may stand for thousands of times as many
_LINE = 1 << 28  # bytes of a line at most, since a line is read whole


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


def expand(paths: Iterable[str]) -> tuple[str, ...]:
    """Returns the files that `paths` name, in the order given and sorted within each.

    Args:
      paths: files, glob patterns (`**` crosses folders), folders (every accepted file directly in
        them), each with `~` for the home; or "bundled:train" and "bundled:validation", the demo
        corpus.

    Raises:
      DataError: if a path names nothing, has an ending that is not accepted, or comes twice.
    """
    files = [file for path in paths for file in _expand(path)]
    for file in files:
        _check_ending(file)
    seen = set()
    for file in files:
        if (real := os.path.realpath(file)) in seen:
            raise DataError(f"{file}: named 2 times by the inputs; name it 1 time.")
        seen.add(real)
    return tuple(files)


def documents(
    path: str, *, on_error: OnError, text_field: str = "text", warn: bool = True
) -> Iterator[Document]:
    """Yields the documents of one file: all of a `.txt`, one for each line of a `.jsonl`.

    Lines end at line feeds only. A byte-order mark is no part of a text.

    Args:
      path: a file with one of `ENDINGS`. Blank lines of a `.jsonl` are no documents.
      on_error: "stop" raises at the first broken line (or `.txt`); "skip" leaves it out.
      text_field: the key of a line's object that holds the text.
      warn: whether to print, at the end, how many were skipped to stderr.

    Raises:
      DataError: if the file cannot be read, holds no document, or is broken under "stop"; for a
        `.txt` that may come while its parts are read.
    """
    _check_ending(path)
    skipped, found = [], 0
    is_text = path.lower().endswith(_TEXT_ENDINGS)
    for document in (_file if is_text else _lines)(path, text_field):
        try:
            if isinstance(document, _BrokenError):
                raise document
            if is_text and on_error == "skip":  # parts are used before a later one proves broken
                collections.deque(document.parts(), maxlen=0)
        except _BrokenError as error:
            if on_error == "stop":
                raise
            skipped.append(error.where)
        else:
            found += 1
            yield document
    if skipped and warn:
        console.say(f"{path}: skipped {len(skipped)} broken, the first at {skipped[0]}")
    if not found:
        why = f"{len(skipped)} broken skipped" if skipped else "it is empty"
        raise DataError(f"{path}: 0 documents ({why}); give it text or leave it out of the inputs.")


class _BrokenError(DataError):
    """Why one record is no document."""

    def __init__(self, where: str, reason: str):
        super().__init__(f"{where}: {reason}; fix it, or prepare with on_error=skip.")
        self.where = where


def _expand(path: str) -> list[str]:
    path = os.path.expanduser(path)
    if path.startswith("bundled:"):
        if path not in BUNDLED:
            raise DataError(f"{path}: no such corpus; the bundled ones are {', '.join(BUNDLED)}.")
        return [str(_corpus() / BUNDLED[path])]
    if os.path.isdir(path):
        names = sorted(n for n in os.listdir(path) if n.lower().endswith(ENDINGS))
        files = [os.path.join(path, n) for n in names if os.path.isfile(os.path.join(path, n))]
        if not files:
            raise DataError(f"{path}: 0 files in this folder end in {', '.join(ENDINGS)}.")
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


def _check_ending(path: str) -> None:
    if not path.lower().endswith(ENDINGS):
        raise DataError(f"{path}: not a kind of file that is read; use {', '.join(ENDINGS)}.")


def _open(path: str) -> IO[bytes]:
    if path.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    if path.lower().endswith(".zst"):
        return io.BufferedReader(_Zstandard(path), _CHUNK)
    return open(path, "rb")


class _Zstandard(io.RawIOBase):
    """Frames of a Zstandard file; unlike the library's reader, a frame cut short is an error."""

    def __init__(self, path: str):
        self._file = open(path, "rb")
        self._frame = None  # decompressor of the frame being read
        self._input = b""
        self._output = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:
        while not self._output:
            self._input = self._input or self._file.read(_PACKED_CHUNK)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the compressed data ends before its end marker")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count


def _file(path: str, _: str) -> Iterator[Document]:
    """Yields a text file, unless it is empty."""
    parts = functools.partial(_parts, path)
    try:
        is_empty = next(parts(), None) is None
    except _BrokenError:
        is_empty = False
    if not is_empty:
        yield Document(parts)


def _parts(path: str) -> Iterator[str]:
    decoder = text_lib.Decoder()
    with _opened(path) as file:
        while True:
            raw = file.read(_CHUNK)
            try:
                text = decoder.decode(raw, is_last=not raw)
            except text_lib.NotTextError as error:
                raise _BrokenError(path, str(error)) from None
            if text:
                yield text
            if not raw:
                return


def _lines(path: str, text_field: str) -> Iterator[Document | _BrokenError]:
    """Yields each line that is not blank."""
    with _opened(path) as file:
        for number in itertools.count(1):
            if not (raw := file.readline(_LINE + 1)):
                return
            where = f"{path}:{number}"
            if len(raw) > _LINE:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(_CHUNK)
                yield _BrokenError(where, f"longer than {_LINE} bytes, the most of a line")
            elif raw.strip():
                try:
                    yield Document(functools.partial(iter, (_parse(raw, text_field),)))
                except text_lib.NotTextError as error:
                    yield _BrokenError(where, str(error))


def _parse(raw: bytes, text_field: str) -> str:
    """Returns the text of one line."""
    wrong = text_lib.NotTextError
    try:
        row = json.loads(text_lib.decode(raw))
    except (ValueError, RecursionError) as error:
        raise wrong(f"bad JSON, {' '.join(str(error).split())}") from None
    if not isinstance(row, dict):
        raise wrong(f"a JSON {type(row).__name__} where an object is expected")
    if text_field not in row:
        raise wrong(f"no field {text_field!r}, text_field may name one of {sorted(row)[:8]}")
    if not isinstance(row[text_field], str):
        raise wrong(f"field {text_field!r} is {type(row[text_field]).__name__}, not text")
    if (place := text_lib.lone_surrogate(row[text_field])) is not None:  # JSON can escape half one
        raise wrong(f"a lone surrogate at character {place}")
    return row[text_field]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    try:
        with _open(path) as file:
            yield file
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: does not exist; give a file that does.")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{path}: is a folder; give the files in it.")
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    return DataError(f"{path}: cannot be read ({reason}); check or fetch the file again.")
