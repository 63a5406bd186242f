"""Reads the bytes of files, plain or compressed with gzip or Zstandard."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator

import zstandard

from recursia import buckets
from recursia.errors import DataError

COMPRESSIONS = ("", ".gz", ".zst")  # suffixes that may follow that of the kind of file
CHUNK = 1 << 20  # bytes read at a time
_COMPRESSED_CHUNK = 1 << 14  # bytes of Zstandard input read at a time: some give 1000 times as many


@contextlib.contextmanager
def opened(path: str) -> Iterator[io.BufferedIOBase]:
    """Opens a file, and decompresses it if its suffix says so.

    Raises:
      DataError: if the file cannot be read, also if that shows only inside the `with` block.
    """
    try:
        with _open(path) as file:
            yield file
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise unreadable(path, error) from None


def unreadable(path: str, error: Exception) -> DataError:
    """Returns an error of one line that says why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: does not exist; give a file that does.")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{path}: is a folder; give the files in it.")
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    return DataError(f"{path}: cannot be read ({reason}); check or fetch the file again.")


def plain(path: str) -> io.BufferedIOBase:
    """Opens a file on disk or an object in a bucket, as it is stored."""
    return buckets.path(path).open("rb")


def _open(path: str) -> io.BufferedIOBase:
    if path.lower().endswith(".gz"):
        return gzip.open(plain(path), "rb")
    if path.lower().endswith(".zst"):
        return io.BufferedReader(_Zstandard(path), CHUNK)
    return plain(path)


class _Zstandard(io.RawIOBase):
    """Decompresses the frames of a Zstandard file.

    A truncated frame is an error here; the reader of the zstandard library ends without one.
    """

    def __init__(self, path: str):
        self._file = plain(path)
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
            self._input = self._input or self._file.read(_COMPRESSED_CHUNK)
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
