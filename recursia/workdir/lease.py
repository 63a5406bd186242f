"""The lock of a run's directory in a bucket: the newest of a row of objects holds it.

Nothing there ends with a process, so the holder writes its object anew while it runs, and counts.
Whoever sees a count stand still for long enough takes the lock over by creating the next object,
which a bucket grants to one alone. No clocks are compared. A holder that was cut off for as long
finds the next object before its next save, and ends.
"""

import contextlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from recursia.errors import CheckpointError
from recursia.workdir import lock

BEAT_SECONDS = 10.0  # between two writes of the object
STALE_SECONDS = 90.0  # without one, after which the holder counts as dead
_NAME = re.compile(r"\d{9}")


class Lease:
    """The lock of a directory, held until it is closed or counts as dead."""

    def __init__(self, workdir: Any, say: Callable[[str], None]):
        """Takes the lock; if its holder is on another host and silent, after `STALE_SECONDS`.

        Args:
          workdir: the run's directory.
          say: prints a line.

        Raises:
          CheckpointError: if another run holds it.
          StorageError: if the bucket cannot be reached.
        """
        self._workdir, self._folder, self._say = workdir, workdir / lock.FILE, say
        before = self._newest()
        if before and (holder := self._holder(before)) is not None:
            self._outlive(before, holder)
        number, self._count = int(before or 0) + 1, 0
        self._name, self._key = f"{number:09}", uuid.uuid4().hex
        try:
            (self._folder / self._name).write_bytes(row := self._row(), is_new=True)
        except FileExistsError:
            if (self._folder / self._name).read_bytes() != row:  # else an answer was lost
                raise self._refusal(self._holder(self._name)) from None
        if self._newest() != self._name:  # slower than two others
            raise self._refusal(self._holder(self._newest()))
        for name in self._names():
            if name < self._name:
                (self._folder / name).unlink(missing_ok=True)
        self._closed = threading.Event()
        self._beat = threading.Thread(target=self._touch, name="lock", daemon=True)
        self._beat.start()

    def _names(self) -> list[str]:
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted(each.name for each in found if _NAME.fullmatch(each.name))

    def _newest(self) -> str:
        return max(self._names(), default="")

    def _holder(self, name: str) -> dict[str, Any] | None:
        """Returns who wrote an object, and its count; None if it was given back or is gone."""
        try:
            written = (self._folder / name).read_bytes()
            holder = lock.written_by(written)
            return holder and {**holder, "count": json.loads(written).get("count")}
        except FileNotFoundError:
            return None

    def _row(self) -> bytes:
        self._count += 1
        row = {**lock.this_holder(), "count": self._count, "key": self._key}
        return (json.dumps(row) + "\n").encode()

    def _outlive(self, name: str, holder: dict[str, Any]) -> None:
        """Returns once a holder is known to be dead; raises CheckpointError if it lives."""
        if holder["machine"] == lock.this_machine():
            if lock.is_alive(holder["process"]):
                raise self._refusal(holder)
            return
        began = time.monotonic()
        self._say(
            f"waiting {STALE_SECONDS:.0f} s for a sign of life of process {holder['process']} on "
            f"{holder['host']}, which held {self._folder}"
        )
        while time.monotonic() - began < STALE_SECONDS:
            now = self._holder(name)
            if now is None:
                return
            if now != holder:
                raise self._refusal(now)
            time.sleep(min(BEAT_SECONDS / 2, STALE_SECONDS / 4))

    def _refusal(self, holder: dict[str, Any] | None) -> CheckpointError:
        who = holder or {"process": "?", "host": "another host"}
        return CheckpointError(
            f"--workdir={self._workdir}: process {who['process']} on {who['host']} trains there; "
            "stop it, or give another workdir"
        )

    def is_held(self) -> bool:
        """Returns whether no later object is there; raises StorageError if that is not known."""
        return self._newest() == self._name

    def check(self) -> None:
        """Checks that no other run has taken the lock over while this process was cut off.

        Raises:
          CheckpointError: if one has, or if the object is gone.
          StorageError: if the bucket cannot be reached.
        """
        if not self.is_held():
            raise lock.taken_over(self._workdir)

    def _touch(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if self.is_held():
                    (self._folder / self._name).write_bytes(self._row())

    def close(self) -> None:
        """Gives the lock back; an empty object stays, so that numbers only grow."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._beat.join()
        with contextlib.suppress(OSError):
            if self.is_held():
                (self._folder / self._name).write_bytes(b"\n")


def is_live(workdir: Any) -> bool:
    """Returns whether a run holds the lock of a directory, by the clocks, without taking it."""
    folder = workdir / lock.FILE
    names = [each.name for each in folder.iterdir() if _NAME.fullmatch(each.name)]
    try:
        newest = folder / max(names, default="none")
        holder, age = lock.written_by(newest.read_bytes()), time.time() - newest.stat().st_mtime
    except FileNotFoundError:
        return False
    is_here = holder is not None and holder["machine"] == lock.this_machine()
    is_gone = holder is None or (is_here and not lock.is_alive(holder["process"]))
    return not is_gone and age < STALE_SECONDS
