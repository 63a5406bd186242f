"""A run that is started, watched, broken and started again, through the command line alone."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from recursia.workdir import digests, steps

ROOT = pathlib.Path(__file__).parents[1]
LIMIT_SECONDS = 600.0  # for what takes seconds on an idle machine
POLL_SECONDS = 0.01
SAMPLE_SECONDS = 0.5
SLEEP_SECONDS = 0.3  # about two saves
DATA, DIVERGED, CHECKPOINT, STORAGE, STOPPED = 3, 4, 5, 6, 75  # exit codes
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6

Rng = np.random.Generator


class Unexpected(Exception):
    """What a run did is not what is promised."""


class Finished(Exception):
    """The run came to its end before the fault."""


class Broken:
    """A run in its directory, and the process that trains it, if one does.

    Attributes:
      workdir: of the run.
      steps: of the run, in all.
      every: steps between two saves.
      process: the last one.
      starts: processes so far.
      lost: the most steps that a start had to make again, since it was last set to 0.
      samples: step, megabytes, descriptors and threads of each process, in the order of time.
    """

    def __init__(self, workdir: pathlib.Path, arguments: list[str], steps: int, every: int):
        """Takes the arguments of `recursia train`, and starts nothing."""
        self.workdir, self.arguments = workdir, arguments
        self.steps, self.every = steps, every
        self.process: subprocess.Popen | None = None
        self.starts, self.lost = 0, 0
        self.samples: list[list[tuple[float, ...]]] = []
        self._sampled = self._begun = 0.0
        self._said: list[bytes] = []

    # The process.

    def spawn(self, *changed: str, workdir: pathlib.Path | None = None) -> subprocess.Popen:
        """Starts the command with some settings changed; what it prints goes to a pipe.

        A file would be no use where files cannot grow.
        """
        names = {each.partition("=")[0] for each in changed}
        kept = [each for each in self.arguments if each.partition("=")[0] not in names]
        command = [sys.executable, "-m", "recursia", "train", *kept, *changed]
        command.append(f"--workdir={workdir or self.workdir}")
        self.workdir.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environment}
        return subprocess.Popen(command, **pipes)

    def start(self, *changed: str) -> None:
        """Starts the run, which must not be running."""
        assert not self.is_running(), "two processes of one run"
        self.made_before, self.expected = self.made(), self.whole()
        self.process = self.spawn(*changed)
        self._said = []
        self._reader = threading.Thread(target=self._listen, args=(self.process, self._said))
        self._reader.start()
        self.starts += 1
        self.samples.append([])
        self._is_resumed = False
        self._begun = time.monotonic()

    def _listen(self, process: subprocess.Popen, said: list[bytes]) -> None:
        while read := os.read(process.stdout.fileno(), 1 << 16):
            said.append(read)
        process.stdout.close()

    def is_running(self) -> bool:
        """Returns whether its process lives."""
        return self.process is not None and self.process.poll() is None

    def sample(self) -> None:
        """Counts memory, descriptors and threads of the process, twice a second once it trains."""
        now, step = time.monotonic(), self.made()
        if now - self._sampled < SAMPLE_SECONDS or not self._is_resumed or not step:
            return
        self._sampled, of = now, pathlib.Path(f"/proc/{self.process.pid}")
        try:
            pages = int((of / "statm").read_text().split()[1])
            counts = (len(os.listdir(of / name)) for name in ("fd", "task"))
            if pages:  # or it has just ended
                self.samples[-1].append((step, pages * PAGE_MB, *counts))
        except (OSError, ValueError, IndexError):  # as above
            return

    def until(self, is_time: Callable[[], bool]) -> bool:
        """Waits until it is time, or the process has ended: returns which came first."""
        limit = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < limit:
            is_over = not self.is_running()
            self._check_resumed()
            if is_time():
                return True
            if is_over:
                return False
            self.sample()
            time.sleep(POLL_SECONDS)
        raise Unexpected(f"nothing came of it in {LIMIT_SECONDS:.0f} s")

    def _check_resumed(self) -> None:
        """Once the process says from where it goes on, checks that it is the last whole step."""
        if self._is_resumed or self.process is None:
            return
        said = self.said()
        if "compiling" not in said:  # by now later rows are deleted
            return
        found = re.findall(r"resuming .* at step (\d+)$", said, re.MULTILINE)
        at = int(found[-1]) if found else 0
        self._is_resumed = True
        if at < self.expected:
            raise Unexpected(f"resumed at step {at}, but step {self.expected} is whole")
        self.lost = max(self.lost, self.made_before - at)

    def ends(self, *codes: int) -> int:
        """Waits for the end of the process: its code must be one of these, its last word a line."""
        if self.until(lambda: False):
            raise AssertionError
        self._reader.join()
        code = self.process.returncode
        if code not in codes:
            raise Unexpected(f"ended with {code} instead of {codes}: {self.tail()[-1:]}")
        said = self.said()
        if "Traceback" in said:
            raise Unexpected("left a traceback")
        last = said.splitlines()[-1:] or [""]
        if code > 0 and not last[0].startswith("recursia: "):
            raise Unexpected(f"its last line is {last[0]!r}")
        return code

    def live(self, steps_on: int = 1) -> int:
        """Returns a step of the running process, so many after its first or after the last call.

        Raises:
          Finished: if so few steps are left that the run would end meanwhile.
        """
        if not self.is_running():
            self.start()
        before = max(self.expected, self.made() if self._is_resumed else 0)
        target = before + steps_on
        if target > self.steps - self.every:
            raise Finished
        has_come = lambda: self._is_resumed and self.made() >= target
        if not self.until(has_come):
            raise Unexpected(f"ended with {self.process.returncode} by itself")
        return self.made()

    def reach(self, rng: Rng) -> int:
        """Returns a step of the living process, at a random instant of it."""
        step = self.live(int(rng.integers(1, 2 * self.every + 2)))
        time.sleep(rng.uniform(0, SLEEP_SECONDS))
        return step

    def rest(self) -> None:
        """Ends the process, if one runs, as a machine that is switched off does."""
        self.stop()
        if not self.workdir.exists() or len(self.saved()) < 2:
            self.live(2 * self.every + 2)
            self.stop()

    def stop(self) -> None:
        """Kills the process, if one runs."""
        if self.is_running():
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self._reader.join()

    def finish(self) -> None:
        """Lets the run come to its end."""
        if not self.is_running():
            self.start()
        self.ends(0)

    def has_room(self) -> bool:
        """Returns whether enough steps are left for a fault."""
        return self.made() < self.steps - 3 * self.every

    # What it wrote.

    def said(self) -> str:
        """Returns what the process has printed."""
        return b"".join(self._said).decode(errors="replace")

    def tail(self) -> list[str]:
        """Returns the last lines that the process has printed."""
        return self.said().splitlines()[-8:]

    def made(self) -> int:
        """Returns the last step in metrics.jsonl; 0 if there is none."""
        try:
            with open(self.workdir / "metrics.jsonl", "rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 20_000, 0))
                found = re.findall(rb'^{"step": (\d+)', file.read(), re.MULTILINE)
        except OSError:
            return 0
        return int(found[-1]) if found else 0

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of steps."""
        return self.workdir / "checkpoints"

    def saved(self) -> list[int]:
        """Returns the steps that count."""
        return steps.finished(self.checkpoints)

    def whole(self) -> int:
        """Returns the last step whose files are whole; 0 if none is."""
        for step in reversed(self.saved()):
            try:
                if digests.check(self.checkpoints / str(step)):
                    return step
            except digests.Damaged:
                continue
        return 0

    def arrays(self, step: int) -> dict[str, tuple]:
        """Returns dtype, shape and bytes of every array of a step."""
        path, reader = self.checkpoints.absolute() / str(step) / "state", ocp.PyTreeCheckpointer()
        tree = reader.metadata(path).item_metadata.tree
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = reader.restore(path, restore_args=wanted)
        leaves = jax.tree_util.tree_leaves_with_path(found)
        return {jax.tree_util.keystr(at): (str(x.dtype), x.shape, x.tobytes()) for at, x in leaves}

    def copy(self) -> pathlib.Path:
        """Copies the directory of a run at rest beside it; returns the copy."""
        to = self.workdir.with_name("copy")
        shutil.rmtree(to, ignore_errors=True)
        return pathlib.Path(shutil.copytree(self.workdir, to))


def hear_signals() -> None:
    """Resets signals that this program was started to ignore, as what it starts would too."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a file."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
