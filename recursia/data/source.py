"""Documents out of plain text and JSON Lines files, gzip or Zstandard compressed or not."""

import glob
import gzip
import importlib.resources
import io
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Literal

import zstandard

from recursia.errors import DataError

OnError = Literal["stop", "skip"]
_PACKED = ("", ".gz", ".zst")
_TEXT_ENDINGS = tuple(".txt" + packed for packed in _PACKED)
ENDINGS = (*_TEXT_ENDINGS, *(".jsonl" + packed for packed in _PACKED))
BUNDLED = {f"bundled:{name}": f"{name}.jsonl.gz" for name in ("train", "validation")}
_CHUNK = 1 << 20  # bytes read at a time


def expand(paths: Iterable[str]) -> tuple[str, ...]:
    """Returns the files that `paths` name, in the order given and sorted within each.

    Args:
      paths: files, glob patterns (`**` crosses folders), folders (every accepted file directly in
        them), or "bundled:train" and "bundled:validation", the demo corpus.

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
) -> Iterator[str]:
    """Yields the documents of one file: all of a `.txt`, one for each line of a `.jsonl`.

    Args:
      path: a file with one of `ENDINGS`. Blank lines of a `.jsonl` are no documents.
      on_error: "stop" raises at the first broken line (or `.txt`); "skip" leaves it out.
      text_field: the key of a line's object that holds the text.
      warn: whether to print, at the end, how many were skipped to stderr.

    Raises:
      DataError: if the file cannot be read, holds no document, or is broken under "stop".
    """
    _check_ending(path)
    skipped, found = [], 0
    try:
        with _open(path) as file:
            for number, raw in _records(path, file):
                try:
                    text = _parse(raw, None if number is None else text_field)
                except _BrokenError as error:
                    where = path if number is None else f"{path}:{number}"
                    if on_error == "stop":
                        raise DataError(
                            f"{where}: {error}; fix it, or pass --on_error=skip."
                        ) from None
                    skipped.append(where)
                else:
                    found += 1
                    yield text
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise _unreadable(path, error) from None
    if skipped and warn:
        print(f"{path}: skipped {len(skipped)} broken, the first at {skipped[0]}", file=sys.stderr)
    if not found:
        why = f"{len(skipped)} broken skipped" if skipped else "it is empty"
        raise DataError(f"{path}: 0 documents ({why}); give it text or leave it out of the inputs.")


class _BrokenError(Exception):
    """Why one record is no document."""


def _expand(path: str) -> list[str]:
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
            self._input = self._input or self._file.read(_CHUNK)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the compressed data ends before its end marker")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._output = self._frame.decompress(self._input)
            self._input = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count


def _records(path: str, file: IO[bytes]) -> Iterator[tuple[int | None, bytes]]:
    """Yields (line number, bytes); the number is None for a whole text file."""
    if path.lower().endswith(_TEXT_ENDINGS):
        if raw := file.read():
            yield None, raw
        return
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line


def _parse(raw: bytes, text_field: str | None) -> str:
    """Returns the text of one record; `text_field` is None for a whole text file."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _BrokenError(f"invalid UTF-8 at byte {error.start}") from None
    if text_field is None:
        return text
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _BrokenError(f"bad JSON, {' '.join(str(error).split())}") from None
    if not isinstance(row, dict):
        raise _BrokenError(f"a JSON {type(row).__name__} where an object is expected")
    if text_field not in row:
        raise _BrokenError(f"no field {text_field!r}, the fields are {sorted(row)[:8]}")
    if not isinstance(row[text_field], str):
        raise _BrokenError(f"field {text_field!r} is {type(row[text_field]).__name__}, not text")
    try:
        row[text_field].encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair
        raise _BrokenError(f"a lone surrogate at character {error.start}") from None
    return row[text_field]


def _unreadable(path: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: does not exist; give a file that does.")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{path}: is a folder; give the files in it.")
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    return DataError(f"{path}: cannot be read ({reason}); check or fetch the file again.")
