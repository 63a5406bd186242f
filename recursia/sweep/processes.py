"""Training processes on this machine, each with CPUs and GPUs of its own."""

import collections
import contextlib
import math
import os
import pathlib
import subprocess
import sys
import time
from typing import BinaryIO

from recursia import console
from recursia.errors import StorageError
from recursia.sweep import states
from recursia.sweep.directory import LOG
from recursia.sweep.division import Share
from recursia.sweep.trial import Trial
from recursia.workdir import ending, place

PROGRAM = (sys.executable, "-m", "recursia")
ALONE = "--num_processes=1"  # whatever the environment says of others
LAST_LINES = 3  # of a log, which say why a trial failed


class Process:
    """The training of one trial.

    Attributes:
      trial: that it trains.
      share: its CPUs and GPUs.
      lost: why the way it ended is recorded nowhere, as on a full disk; else "".
    """

    def __init__(self, trial: Trial, folder: pathlib.Path, share: Share):
        """Starts it, in a session of its own, where Ctrl-C does not reach it twice."""
        self.trial, self.share, self._folder = trial, share, folder
        self._before, self._sent, self.lost = self._end(), time.monotonic(), ""
        try:
            self._mirror = place.of(folder).mirror(folder)
            self._log = self._mirror.near / LOG
            if not self._log.exists() and (folder / LOG).exists():
                self._log.write_bytes((folder / LOG).read_bytes())
            with self._log.open("ab") as log:
                self._process = self._start([*trial.command(str(folder)), ALONE], log)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written ({error.strerror})") from None

    def _start(self, command: list[str], log: BinaryIO) -> subprocess.Popen:
        before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        if before and self.share.cpus:
            os.sched_setaffinity(0, self.share.cpus)  # which a new process inherits
        try:
            return subprocess.Popen(
                [*PROGRAM, *command],
                env={**os.environ, **self.share.variables()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            if before:
                os.sched_setaffinity(0, before)

    def send(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def has_ended(self) -> bool:
        """Returns whether it has ended; a failure that it could not record is recorded then."""
        code, here = self._process.poll(), place.of(self._folder)
        interval = here.INTERVAL or math.inf
        if code is not None or time.monotonic() - self._sent > interval:
            self._send_log(is_last=code is not None)
        if code is None:
            return False
        with contextlib.suppress(StorageError):
            is_known = self._end() != self._before or here.is_live(self._folder)
            if code > 0 and code not in states.RESUMABLE and not is_known:
                ending.write(self._folder, code, why := self._last_lines())
                if self._end() == self._before:
                    said = "cannot be written, and the trial ended with"
                    self.lost = f"{self._folder / ending.FILE}: {said} {code}: {why}"
        self._mirror.close()
        return True

    def _send_log(self, is_last: bool) -> None:
        self._sent = time.monotonic()
        try:
            self._mirror.send()
        except OSError as error:
            if is_last:
                console.say(f"{self._folder / LOG}: cannot be written ({error.strerror})")

    def _end(self) -> bytes:
        """Returns how the run ended last, as it wrote it; nothing if it did not."""
        try:
            return (self._folder / ending.FILE).read_bytes()
        except OSError:
            return b""

    def _last_lines(self) -> str:
        with self._log.open(errors="replace") as log:
            last = collections.deque((line.strip() for line in log if line.strip()), LAST_LINES)
        return " ".join(last)
