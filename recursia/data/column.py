"""A column: numbers of one type in a file, read where they are asked for.

A file that shrinks under a memory map ends the process with SIGBUS; a read that comes short is an
error that can be answered.
"""

import array
import functools
import itertools
import operator
import os
import weakref
from bisect import bisect_left
from typing import Any

import numpy as np

from recursia import buckets
from recursia.data import remote
from recursia.errors import DataError

MOST_OPEN = 256  # files that a process keeps open; those beyond are opened for each read
_BLOCK = 512  # numbers of which a search reads one in memory, then all

_open: set[int] = set()  # descriptors that are kept


class Column:
    """The numbers of a file; a slice reads them, and has no step.

    Attributes:
      path: the file.
      dtype: of its numbers.
    """

    def __init__(self, path: str, dtype: np.dtype, count: int, cache: remote.Cache):
        """Opens a file of `count` numbers, or names an object in a bucket.

        Args:
          path: the file or object.
          dtype: of its numbers.
          count: how many there are.
          cache: of the folder, if it is in a bucket.

        Raises:
          DataError: if it cannot be opened.
        """
        self.path, self.dtype, self._count = path, dtype, count
        self._file, self._object = None, None
        if buckets.is_place(path):
            self._object = remote.Object(path, count * dtype.itemsize, cache)
        elif len(_open) < MOST_OPEN:
            self._file = self._opened()
            _open.add(self._file)
            weakref.finalize(self, _close, self._file)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            start, stop, _ = place.indices(self._count)
            return self._read(start, max(stop, start))
        index = operator.index(place) + self._count * (place < 0)
        if not 0 <= index < self._count:
            raise IndexError(f"{self.path}: {place} is not among its {self._count} numbers.")
        return self._read(index, index + 1)[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def between(self, low: int, high: int) -> np.ndarray:
        """Returns the numbers of a rising column in [low, high)."""
        first, last = max(bisect_left(self._marks, low) - 1, 0), bisect_left(self._marks, high)
        numbers = self._read(first * _BLOCK, min(last * _BLOCK, self._count))
        start = numbers.searchsorted(low)
        return numbers[start : start + numbers[start:].searchsorted(high)]

    @functools.cached_property
    def _marks(self) -> array.array:
        """The first number of each block, in memory."""
        parts = range(0, self._count, _BLOCK * _BLOCK)
        firsts = (self[at : at + _BLOCK * _BLOCK][::_BLOCK].tolist() for at in parts)
        return array.array("q", itertools.chain.from_iterable(firsts))

    def _opened(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._unreadable(error.strerror or "no reason given") from None

    def _read(self, start: int, stop: int) -> np.ndarray:
        size, place = (stop - start) * self.dtype.itemsize, start * self.dtype.itemsize
        try:
            read = self._read_file if self._object is None else self._object.read
            raw = read(place, size) if size else b""
        except OSError as error:
            raise self._unreadable(error.strerror or "no reason given") from None
        if len(raw) < size:
            has, had = os.path.getsize(self.path), self._count * self.dtype.itemsize
            raise self._unreadable(f"it has {has} bytes, and {had} when the run began")
        return np.frombuffer(raw, self.dtype)

    def _read_file(self, place: int, size: int) -> bytes:
        file = self._opened() if self._file is None else self._file
        try:
            raw = os.pread(file, size, place)
            while len(raw) < size and (more := os.pread(file, size - len(raw), place + len(raw))):
                raw += more
            return raw
        finally:
            if self._file is None:
                os.close(file)

    def _unreadable(self, why: str) -> DataError:
        advice = "copy it again, or prepare again"
        if self._object is not None:
            advice = f"make it readable, or {advice}"
        return DataError(f"{self.path}: cannot be read ({why}); {advice}.")


def _close(file: int) -> None:
    _open.discard(file)
    os.close(file)
