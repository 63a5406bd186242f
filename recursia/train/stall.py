"""Notices that training stands still: a process that was stopped or a device that hangs."""

import faulthandler
import os
import pathlib
import threading
import time
from typing import NoReturn

from recursia import console
from recursia.errors import Lost

LEAST_SECONDS = 60.0  # of waiting for a step, before training counts as standing still
MOST_STEPS = 20.0  # the same, in times of the longest wait so far
FIRST_SECONDS = 1800.0  # the same, for the first step


class Watchdog:
    """Ends this process once a step takes far too long; the other processes do the same.

    The loop says when it begins to wait for a step, and when the step has come.
    """

    def __init__(self, workdir: pathlib.Path, process: int):
        """Starts the thread.

        Args:
          workdir: the run's directory, to which stacks are written.
          process: index of this process.
        """
        self.path, self._process = workdir / f"stacks-{process}.txt", process
        self._wait: object | None = None  # another for each wait
        self._began = self._longest = 0.0
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def begin(self) -> None:
        """Says that the loop begins to wait for a step."""
        self._wait, self._began = object(), time.monotonic()

    def end(self) -> None:
        """Says that the step has come."""
        if self._wait is not None:
            self._longest = max(self._longest, time.monotonic() - self._began)
        self._wait = None

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()

    def _look(self) -> None:
        seen, seconds = None, 0  # counted here: they stand still while this process does
        while not self._closed.wait(1.0):
            seconds = seconds + 1 if self._wait is not None and self._wait is seen else 0
            seen = self._wait
            limit = max(LEAST_SECONDS, MOST_STEPS * self._longest)
            limit = limit if self._longest else FIRST_SECONDS
            if seconds > limit:
                leave(self.path, f"no step has ended for {limit:.0f} s", self._process)


def leave(path: pathlib.Path, why: str, process: int) -> NoReturn:
    """Writes the stacks of all threads, says so in a line, and ends this process.

    Args:
      path: the file for the stacks.
      why: what was noticed.
      process: index of this process.
    """
    try:
        with path.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        stacks = f"the stacks of all threads are in {path}"
    except OSError as error:
        stacks = f"{path} cannot be written ({error.strerror})"
    console.say(
        f"recursia: process {process}: {why}: another process, or a device, stands still or is "
        f"lost; {stacks}; run the same command to resume"
    )
    console.flush()
    os._exit(Lost.exit_code)
