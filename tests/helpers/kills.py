"""The directories that killed runs leave: copies made between two file operations of a run.

A process that is killed leaves what it has done so far. While a copy is made, every thread of
Python waits that wants the next operation. Which of a run's instants is taken is uniform, without
knowing how many there will be: the copy of the n-th replaces the last one with probability 1/n.
"""

import contextlib
import os
import pathlib
import random
import shutil
import sys
import threading
from collections.abc import Iterator

import numpy as np

from tests.helpers.runs import differences, saved

SEED = random.SystemRandom().randrange(1 << 32)  # a failure says it, to be put here
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
KILLED = """
import os, random, signal, sys
from recursia import cli
from tests.helpers import kills

left = [int(sys.argv.pop(1))]

def strike(event, path):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)

with kills.watched(sys.argv.pop(1), strike):
    sys.exit(cli.main(sys.argv[1:]))
"""  # `python -c KILLED NUMBER WORKDIR ...`: killed in place of an operation
_watching = []


def _hook(event, given):
    if _watching and event in OPERATIONS and isinstance(given[0], str | bytes | os.PathLike):
        for place, call in _watching:
            if (path := os.fsdecode(given[0])).startswith(place):
                call(event, path)


sys.addaudithook(_hook)  # which nothing removes


@contextlib.contextmanager
def watched(workdir, call):
    """Calls a function with the name and the path of each operation under a directory."""
    _watching.append((f"{workdir}{os.sep}", call))
    try:
        yield
    finally:
        _watching.clear()


class Kill:
    """A copy of a directory as a kill at a random instant leaves it.

    Attributes:
      at: the instant, in words.
    """

    def __init__(self, workdir: pathlib.Path, copy: pathlib.Path, rng: np.random.Generator):
        """Copies nothing yet."""
        self.workdir, self.copy, self.at = workdir, copy, "before anything was written"
        self._rng, self._count, self._turn = rng, 0, threading.RLock()
        self._copies = False

    @contextlib.contextmanager
    def struck(self) -> Iterator[None]:
        """Leaves the copy of some instant of what is done in its context."""
        with watched(self.workdir, self._operation):
            yield
        self._tear()

    def _operation(self, event: str, path: str) -> None:
        if self._copies and self._turn._is_owned():  # the operation is of the copy itself
            return
        with self._turn:
            self._count += 1
            if self._rng.random() >= 1 / self._count:
                return
            self.at = f"before operation {self._count}, {event} {path[len(str(self.workdir)) :]}"
            self._copies = True
            self._made(attempts=9)
            self._copies = False

    def _made(self, attempts: int) -> None:
        """Copies the directory, again if a thread that is not Python's moved a file meanwhile."""
        shutil.rmtree(self.copy, ignore_errors=True)
        try:
            shutil.copytree(self.workdir, self.copy)
        except shutil.Error:
            if not attempts:
                raise
            self._made(attempts - 1)

    def _tear(self) -> None:
        """Cuts a line short that would have come next, of a file to which lines are appended."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.copy / name
            if path.exists() and (last := path.read_bytes().splitlines()[-1:]):
                with path.open("ab") as file:
                    file.write(last[0][: self._rng.integers(len(last[0]))])


def survives(start, unbroken, folder, count, about):
    """Kills a run again and again, each time from what the last kill left.

    Args:
      start: trains in a directory to the end.
      unbroken: the directory of a run that nothing stopped.
      folder: for the directories.
      count: of kills.
      about: the run, in words.

    Returns:
      The directory of the run that was killed last, and that has ended.
    """
    rng, history = np.random.default_rng(SEED), []
    workdir, last = folder / "0", saved(unbroken)[-1]
    try:
        for number in range(count):
            kill = Kill(workdir, folder / str(number + 1), rng)
            with kill.struck():
                start(workdir)
            assert not differences(workdir, unbroken, last)
            is_over = last in saved(kill.copy)
            shutil.rmtree(workdir)
            # One that was killed at its end has little left to be killed in.
            history = [] if is_over else [*history, f"{kill.at}, steps {saved(kill.copy)}"]
            workdir = folder / "0" if is_over else kill.copy
        start(workdir)
        assert not differences(workdir, unbroken, last)
        return workdir
    except Exception as error:
        error.add_note(f"{about}, seed {SEED}, kill {kill.at}, after {history}")
        raise
