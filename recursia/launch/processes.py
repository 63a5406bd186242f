"""Child processes that end together: their output, their signals and their exit code."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from recursia import console, signals
from recursia.errors import Preempted


class Processes:
    """Starts commands, one group of them after another, and passes signals on to them.

    Attributes:
      listener: has the first signal to this process as `received`.
    """

    def __init__(self, environment: Mapping[str, str]):
        """Listens for signals until `listener` is closed.

        Args:
          environment: variables of the commands, besides those of this process.
        """
        self._environment = {**os.environ, **environment}
        self._running: list[subprocess.Popen] = []
        self.listener = signals.Listener(signals.ENDINGS, self._pass_on)
        self.listener.has_work = True  # what the commands have not saved

    def finish(self, commands: Sequence[Sequence[str]]) -> int:
        """Runs commands side by side to their end; returns the exit code of the run.

        That of the first that failed: the others end because of it.
        """
        for index, command in enumerate(commands):
            self._running.append(self._start(index, command))
        readers = [self._reader(i, p) for i, p in enumerate(self._running) if p.stdout]
        if self.listener.received is not None:  # while they were starting
            self._pass_on(self.listener.received)
        codes = self._wait()
        for reader in readers:
            reader.join()
        self._running = []
        return next((self._exit_code(code) for code in codes if code), 0)

    def _start(self, index: int, command: Sequence[str]) -> subprocess.Popen:
        """Starts a command in a session of its own, where Ctrl-C does not reach it twice."""
        how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **(how if index else {}),
        )

    def _reader(self, index: int, process: subprocess.Popen) -> threading.Thread:
        """Returns a running thread that prints a process's lines with its index."""

        def copy() -> None:
            for line in process.stdout or ():
                console.write(f"[{index}] {line.decode(errors='replace')}")

        thread = threading.Thread(target=copy, daemon=True)
        thread.start()
        return thread

    def _wait(self) -> list[int]:
        """Returns the exit codes in the order in which the processes end."""
        codes: list[int] = []
        done = threading.Condition()

        def wait(process: subprocess.Popen) -> None:
            code = process.wait()
            with done:
                codes.append(code)
                done.notify()

        for process in self._running:
            threading.Thread(target=wait, args=(process,), daemon=True).start()
        with done:
            while len(codes) < len(self._running):
                done.wait(1.0)  # a signal's handler runs between two waits
        return codes

    def _pass_on(self, number: int) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(number)

    def _exit_code(self, code: int) -> int:
        """Returns an exit code as a shell gives it: that of a signal is 128 and its number.

        Unless it was passed on from here: it came before the command listened, with nothing to
        save.
        """
        if -code == self.listener.received and -code != signal.SIGINT:
            return Preempted.exit_code
        return code if code >= 0 else 128 - code


def free_port() -> int:
    """Returns a port of the loopback interface that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
