"""The place of a run's directory: a disk or a bucket, and what the two do differently."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

from recursia import buckets
from recursia.workdir import bucket, disk


class Lock(Protocol):
    """Keeps other runs out of a directory."""

    def check(self) -> None:
        """Raises CheckpointError if another run has taken it over."""

    def close(self) -> None:
        """Gives it back."""


class Lines(Protocol):
    """A file to which lines are added."""

    def write(self, line: str) -> None:
        """Adds a line; one that cannot be written yet waits in memory."""

    def flush(self) -> None:
        """Writes what waits."""

    def close(self) -> None:
        """Writes what waits, and closes the file."""


class Mirror(Protocol):
    """A near folder whose files go to another.

    Attributes:
      near: the folder on this machine's disk.
    """

    near: pathlib.Path

    def send(self) -> bool:
        """Sends what is new; returns whether the newest file is large, and another should follow.

        Raises:
          OSError: if it cannot be sent.
        """
        ...

    def close(self) -> None:
        """Ends the use of the near folder; what was not sent may be lost."""


class Place(Protocol):
    """What a module of a place defines.

    Attributes:
      INTERVAL: seconds after which lines are to be flushed; None where they are written at once.
    """

    @property
    def INTERVAL(self) -> float | None:
        """Seconds between two flushes."""
        ...

    @staticmethod
    def lock(workdir: Any, say: Callable[[str], None]) -> Lock:
        """Takes the lock of a directory; raises CheckpointError if another run holds it."""
        ...

    @staticmethod
    def is_live(workdir: Any) -> bool:
        """Returns whether a run holds the lock of a directory, without taking it."""
        ...

    @staticmethod
    def lines(path: Any) -> Lines:
        """Opens a file, to add lines."""
        ...

    @staticmethod
    def append(path: Any, line: str, is_flushed: bool = False) -> None:
        """Adds a line to a file, which another start may have left cut."""

    @staticmethod
    def put(path: Any, contents: bytes) -> None:
        """Writes a file, whole or not at all, and the folders above it if there are none."""

    @staticmethod
    def rewrite(path: Any, contents: bytes) -> None:
        """Replaces the lines of a file, at once or not at all."""

    @staticmethod
    def fill(folder: Any, write: Callable[[str], None]) -> None:
        """Replaces a folder by one that a function writes."""

    @staticmethod
    def near(folder: Any) -> contextlib.AbstractContextManager[pathlib.Path]:
        """Yields the folder on this machine's disk, for libraries that read files."""
        ...

    @staticmethod
    def partial(folder: Any) -> str:
        """Returns the folder on this machine for a begun one; "" is beside the folder."""
        ...

    @staticmethod
    def mirror(folder: Any) -> "Mirror":
        """Returns a near folder for files that a library writes and adds to."""
        ...

    @staticmethod
    def flush(paths: list[Any]) -> None:
        """Returns once files and folders would outlive a loss of power."""

    @staticmethod
    def move(path: Any, to: Any, marker: str) -> None:
        """Moves a file or folder; a file called `marker` leaves its place before others do."""

    @staticmethod
    def remove(path: Any) -> None:
        """Deletes a folder, as far as it can."""

    @staticmethod
    def delete(folder: Any, doomed: Any, marker: str) -> None:
        """Deletes a folder; until `doomed` is gone, `end` can end what was cut short."""

    @staticmethod
    def end(doomed: Any) -> None:
        """Ends a deletion that was cut short."""


def of(path: Any) -> Place:
    """Returns the place of a path."""
    return bucket if buckets.is_place(path) else disk
