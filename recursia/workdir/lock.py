"""The lock of a run's directory: one run at a time, whatever became of the one before.

The holder keeps `run.lock` open under an operating system's lock, which ends with its process, and
touches the file while it runs. Where another host does not see the former it watches for the
latter, so that clocks need not agree.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from recursia.errors import CheckpointError

FILE = "run.lock"
BEAT_SECONDS = 5.0  # between two touches
STALE_SECONDS = 45.0  # without a touch, after which a holder on another host counts as dead

CERTAIN_SECONDS = 3600.0  # age of the last touch that no difference of clocks explains


class Lock:
    """The lock of a directory, held until it is closed or the process ends."""

    def __init__(self, workdir: pathlib.Path, say: Callable[[str], None]):
        """Takes the lock; if its holder is on another host and silent, after `STALE_SECONDS`.

        Args:
          workdir: the run's directory, which exists and can be written.
          say: prints a line.

        Raises:
          CheckpointError: if another run holds it.
        """
        self.path, self._say = workdir / FILE, say
        self._closed = threading.Event()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._take()
        except BaseException:
            os.close(self._file)
            raise
        self._beat = threading.Thread(target=self._touch, name="lock", daemon=True)
        self._beat.start()

    def _take(self) -> None:
        is_free, has_locks = True, True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        except OSError:  # the file system has none
            has_locks = False
        holder = written_by(os.pread(self._file, 4096, 0))
        if not is_free:
            raise self._refusal(holder or {"host": socket.gethostname(), "process": "?"})
        if holder is not None and holder["machine"] != this_machine():
            self._watch(holder)
        elif holder is not None and not has_locks and is_alive(holder["process"]):
            raise self._refusal(holder)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, (json.dumps(this_holder()) + "\n").encode(), 0)

    def _watch(self, holder: dict[str, Any]) -> None:
        """Returns once a holder on another host has been silent for long enough.

        However old its last touch, the file is watched for some beats, as clocks may differ.
        """
        start, touched, age = time.monotonic(), self._touched(), self._age()
        if age > CERTAIN_SECONDS:
            return
        wait = min(max(STALE_SECONDS - age, 3 * BEAT_SECONDS), STALE_SECONDS)
        self._say(
            f"waiting {wait:.0f} s for a sign of life of process {holder['process']} on "
            f"{holder['host']}, which held {self.path}"
        )
        while time.monotonic() - start < wait:
            if self._touched() != touched:
                raise self._refusal(holder)
            time.sleep(min(1.0, BEAT_SECONDS))

    def _refusal(self, holder: dict[str, Any]) -> CheckpointError:
        return CheckpointError(
            f"--workdir={self.path.parent}: process {holder['process']} on {holder['host']} trains "
            f"there (last sign of life {max(self._age(), 0):.0f} s ago); stop it, or give another "
            "workdir"
        )

    def _touched(self) -> float:
        """Returns the time of the last touch; opening the file anew asks a remote file system."""
        with open(self.path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime

    def _age(self) -> float:
        """Returns the seconds since the last touch, by the clock of the file system."""
        probe = self.path.with_name(f".{FILE}-{socket.gethostname()}-{os.getpid()}")
        try:
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        except OSError:
            now = time.time()
        return now - self._touched()

    def is_held(self) -> bool:
        """Returns whether the directory still names this process as its holder."""
        try:
            here, there = os.fstat(self._file), os.stat(self.path)
            holder = written_by(os.pread(self._file, 4096, 0)) or {}
        except OSError:
            return False
        mine = (holder.get("machine"), holder.get("process")) == (this_machine(), os.getpid())
        return mine and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def check(self) -> None:
        """Checks that no other run has taken the lock over while this process stood still.

        Raises:
          CheckpointError: if one has, or if the file is gone.
        """
        if not self.is_held():
            raise taken_over(self.path.parent)

    def _touch(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                if self.is_held():
                    os.utime(self._file)

    def close(self) -> None:
        """Gives the lock back; the file stays, empty."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._beat.join()
        with contextlib.suppress(OSError):
            if self.is_held():
                os.ftruncate(self._file, 0)
        os.close(self._file)


def is_live(workdir: pathlib.Path) -> bool:
    """Returns whether a run holds the lock of a directory, without taking it from anyone.

    One on this machine has a process; one on another has touched the file lately, by the clocks.
    """
    try:
        holder = written_by((workdir / FILE).read_bytes()[:4096])
        age = time.time() - (workdir / FILE).stat().st_mtime
    except OSError:
        return False
    if holder is None or age > STALE_SECONDS:
        return False
    return holder["machine"] != this_machine() or is_alive(holder["process"])


def taken_over(workdir: Any) -> CheckpointError:
    """Returns the error of a run that no longer holds the lock of its directory."""
    return CheckpointError(
        f"--workdir={workdir}: {FILE} is no longer this run's: another run took it over, or it was "
        "deleted; this one ends, and writes nothing more"
    )


def this_holder() -> dict[str, Any]:
    """Returns what a lock says of this process."""
    return {"host": socket.gethostname(), "process": os.getpid(), "machine": this_machine()}


def written_by(written: bytes) -> dict[str, Any] | None:
    """Returns who wrote a lock, or None if nobody holds it."""
    try:
        holder = json.loads(written)
        host, process, machine = (holder[name] for name in ("host", "process", "machine"))
        return {"host": " ".join(str(host).split()), "process": int(process), "machine": machine}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def this_machine() -> str:
    """Returns what names this machine from its start to its end."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


def is_alive(process: int) -> bool:
    """Returns whether this machine has a process."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
