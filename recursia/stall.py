"""Notices that a run of several processes stands still: one was stopped, or a device hangs.

Whoever waits for what other processes may hold up says so. Once a wait takes far too long this
process ends; the others do the same.
"""

import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from recursia import console
from recursia.errors import Lost

LEAST_SECONDS = 60.0  # of a wait, before a run counts as standing still
MOST_TIMES = 20.0  # the same, in times of the longest wait of the kind so far
FIRST_SECONDS = 1800.0  # the same, for the first of a kind, which may be compiled
SAVE_SECONDS = 540.0  # the same, for a save: orbax itself gives up after 600
GRACE_SECONDS = 5.0  # in which the others notice too, before the coordinator goes
SIGN = "run.lock"  # which the first process of a run touches as long as it lives
MEETING = "meeting of all processes"

_watching: list["Watchdog"] = []  # of this process, if it has one


@dataclasses.dataclass(frozen=True, eq=False)
class Wait:
    """A wait for something, and the seconds after which the run counts as standing still."""

    what: str
    seconds: float


class Watchdog:
    """Ends this process once it waits far too long."""

    def __init__(self, folder: pathlib.Path, process: int):
        """Starts the thread.

        Args:
          folder: to which stacks are written; of a run, its directory.
          process: index of this process.
        """
        self._folder, self._process = folder, process
        self._waits: list[Wait] = []  # one may be part of another
        self._longest: dict[str, float] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def waiting(self, what: str, seconds: float | None) -> Iterator[None]:
        """Watches a wait, as the function `waiting` says."""
        longest, began = self._longest.get(what), time.monotonic()
        usual = FIRST_SECONDS if longest is None else max(LEAST_SECONDS, MOST_TIMES * longest)
        self._waits.append(Wait(what, usual if seconds is None else seconds))
        try:
            yield
        finally:
            self._waits.pop()
        if seconds is None:
            self._longest[what] = max(longest or 0.0, time.monotonic() - began)

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()

    def _look(self) -> None:
        seen, sign, seconds = None, 0.0, 0  # counted here: they stand still while this process does
        while not self._closed.wait(1.0):
            wait, before = next(reversed(self._waits), None), sign
            sign = self._sign() if wait is not None and wait.what == MEETING else 0.0
            if wait is None or wait is not seen or (wait.what == MEETING and sign != before):
                seen, seconds = wait, 0
                continue
            seconds += 1
            if seconds > wait.seconds:
                leave(self._folder, f"no {wait.what} has ended for {seconds} s", self._process)

    def _sign(self) -> float:
        """Returns when the first process last showed that it lives: it may prepare for long."""
        try:
            return (self._folder / SIGN).stat().st_mtime if self._process else 0.0
        except OSError:
            return 0.0


@contextlib.contextmanager
def watching(folder: pathlib.Path, process: int) -> Iterator[None]:
    """Watches the waits of this process while its context is open; see `Watchdog`."""
    with contextlib.closing(Watchdog(folder, process)) as watchdog:
        _watching.append(watchdog)
        try:
            yield
        finally:
            _watching.remove(watchdog)


def waiting(what: str, seconds: float | None = None) -> contextlib.AbstractContextManager[None]:
    """Says that the caller waits for what other processes may hold up, while its context is open.

    Args:
      what: a noun, such as "step".
      seconds: after which the run counts as standing still; None goes by the longest such wait so
        far.
    """
    return _watching[-1].waiting(what, seconds) if _watching else contextlib.nullcontext()


def leave(folder: pathlib.Path, why: str, process: int) -> NoReturn:
    """Writes the stacks of all threads, says so in a line, and ends this process.

    Args:
      folder: of the file for the stacks.
      why: what was noticed.
      process: index of this process.
    """
    path = folder / f"stacks-{process}.txt"
    try:
        with tempfile.TemporaryFile() as file:  # faulthandler writes to files alone
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            path.write_bytes(file.read())
        stacks = f"the stacks of all threads are in {path}"
    except OSError as error:
        stacks = f"{path} cannot be written ({error.strerror})"
    console.say(
        f"recursia: process {process}: {why}: another process, or a device, stands still or is "
        f"lost; {stacks}; run the same command to resume"
    )
    console.flush()
    if not process:
        time.sleep(GRACE_SECONDS)
    os._exit(Lost.exit_code)
