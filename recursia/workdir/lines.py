"""Lines on disk: appended whole or not at all, or kept in memory while the disk is full."""

import collections
import contextlib
import os
import pathlib

from recursia.backlog import Backlog

MOST_WAITING = 100_000  # lines of a file that wait in memory; the oldest are lost beyond


class Lines:
    """A file to which lines are appended, whole or not at all."""

    def __init__(self, path: pathlib.Path):
        """Opens the file, and makes it if there is none."""
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._end = os.fstat(self._file).st_size
        self._waiting: collections.deque[bytes] = collections.deque(maxlen=MOST_WAITING)
        self._backlog = Backlog(path)

    def write(self, line: str) -> None:
        """Appends a line, after those that wait; if that fails, it waits too."""
        self._waiting.append(line.encode("utf-8"))
        try:
            while self._waiting:
                self._append(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            self._backlog.grow(error)
        else:
            self._backlog.clear()

    def _append(self, raw: bytes) -> None:
        rest = raw
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._end += len(raw)

    def flush(self) -> None:
        """Does nothing: lines are written at once, or wait for the next."""

    def close(self) -> None:
        """Closes the file; says how many lines are lost, if any are."""
        os.close(self._file)
        self._backlog.lose(len(self._waiting))
