"""The bytes of files, gzip or Zstandard compressed or not."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO

import zstandard

from recursia.errors import DataError

PACKED = ("", ".gz", ".zst")  # what a suffix may be followed by
CHUNK = 1 << 20  # bytes read at a time
_PACKED_CHUNK = 1 << 14  # of Zstandard, which may stand for thousands of times as many


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Opens a file whose suffix says how it is compressed.

    Raises:
      DataError: if it cannot be read, also where that shows later.
    """
    try:
        with _open(path) as file:
            yield file
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise unreadable(path, error) from None


def unreadable(path: str, error: Exception) -> DataError:
    """Returns why a file cannot be read, in one line."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: does not exist; give a file that does.")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{path}: is a folder; give the files in it.")
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    return DataError(f"{path}: cannot be read ({reason}); check or fetch the file again.")


def _open(path: str) -> IO[bytes]:
    if path.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    if path.lower().endswith(".zst"):
        return io.BufferedReader(_Zstandard(path), CHUNK)
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
