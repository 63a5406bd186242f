"""A sink in a thread of its own, so that one that waits or fails holds up no training."""

import pathlib
import queue
import threading
from collections.abc import Callable
from typing import Any

from recursia import console, settings
from recursia.train.sinks.json_lines import METRICS
from recursia.train.sinks.sink import Row, Sink

MOST_WAITING = 10_000  # calls
PATIENCE = 60.0  # seconds at the end for what waits


class Aside(Sink):
    """Passes calls on to a sink, which a thread opens; after its first error it gets none.

    What it cannot take is lost, with one line for the first loss.
    """

    def __init__(
        self, name: str, cls: type[Sink], workdir: pathlib.Path, start: int, run: settings.Run
    ):
        """Begins to open a sink.

        Args:
          name: of the sink, for messages.
          cls: of the sink.
          workdir: the run's directory.
          start: step from which the run goes on.
          run: the settings.
        """
        self._name, self._is_lost = name, False
        self._calls: queue.Queue[Callable[[Sink], Any] | None] = queue.Queue(MOST_WAITING)
        make = lambda: cls(workdir, start, run)
        self._thread = threading.Thread(target=self._work, args=(make,), name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads
            self._lose(str(error))

    def write(self, row: Row) -> None:
        """Passes a row on."""
        self._put(lambda sink: sink.write(row))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Passes a sample on."""
        self._put(lambda sink: sink.sample(step, prompt, text))

    def flush(self) -> None:
        """Does nothing: the thread writes as soon as it can."""

    def close(self) -> None:
        """Waits a while for what is left."""
        if not self._thread.is_alive():
            return
        self._put(None)
        with console.doing(f"{self._name}: sending the rest"):
            self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._lose(f"not done after {PATIENCE:.0f} s")

    def _put(self, call: Callable[[Sink], Any] | None) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._lose(f"{MOST_WAITING:,} rows wait")

    def _work(self, make: Callable[[], Sink]) -> None:
        try:
            sink = make()
            while (call := self._calls.get()) is not None:
                call(sink)
            sink.close()
        except (Exception, SystemExit) as error:  # a library or a user's class may raise anything
            self._lose(f"{type(error).__name__}: {error}")

    def _lose(self, why: str) -> None:
        if not self._is_lost:
            what = " ".join(why.split())
            console.say(f"{self._name}: {what}; {METRICS} has what it lacks, and the run goes on")
        self._is_lost = True
