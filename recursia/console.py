"""Progress bars and status lines on standard error.

On a terminal, rich redraws them in place; in a file or a scheduler's log they are plain lines at
intervals. If the reader closes the stream, later messages are dropped and the command continues.
"""

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

PATIENCE = 2.0  # seconds before a task prints its first line without a terminal
EVERY = 10.0  # seconds between the lines of a bar without a terminal


def is_live() -> bool:
    """Returns whether standard error is a terminal."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def write(text: str) -> None:
    """Writes to standard error; a closed stream is not an error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


def flush() -> None:
    """Flushes both standard streams; a closed stream is not an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def say(line: str) -> None:
    """Prints a line that stays."""
    write(f"\r\033[K{line}\n" if is_live() else line + "\n")


@contextlib.contextmanager
def doing(about: str) -> Iterator[None]:
    """Shows a spinner on a terminal, or else prints one line after two seconds.

    Args:
      about: the task, such as "compiling mor:tiny for 1 device".
    """
    if not is_live():
        timer = threading.Timer(PATIENCE, write, (about + "\n",))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        return
    import rich.console  # 0.1 s, which most commands need not spend

    with _quietly(rich.console.Console(stderr=True).status(about)):
        yield


@contextlib.contextmanager
def bar(
    about: str, total: int | float | None, unit: str = "bytes"
) -> Iterator[Callable[[int | float], None]]:
    """Shows a progress bar; yields `advance(amount)`.

    Without a terminal, prints a plain line after two seconds, and then every ten.

    Args:
      about: the task, such as "tokenising".
      total: the amount at the end, in `unit`; None if unknown.
      unit: "bytes", or a plural such as "batches".
    """
    if not is_live():
        with doing(about + (f": {_counted(total, unit)}" if total else "")):
            yield _Lines(about, total, unit).advance
        return
    import rich.console
    import rich.progress

    progress = rich.progress
    counted = progress.DownloadColumn() if unit == "bytes" else progress.MofNCompleteColumn()
    speed = (progress.TransferSpeedColumn(),) if unit == "bytes" else ()
    columns = ("{task.description}", progress.BarColumn(), counted, *speed)
    drawn = progress.Progress(
        *columns,
        progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
        transient=True,
    )
    with _quietly(drawn):
        task = drawn.add_task(about, total=total)
        yield lambda amount: drawn.advance(task, amount)


class _Lines:
    """A bar as plain lines."""

    def __init__(self, about: str, total: int | float | None, unit: str):
        self._about, self._total, self._unit = about, total, unit
        self._done, self._said = 0.0, time.monotonic()

    def advance(self, amount: int | float) -> None:
        self._done += amount
        if (now := time.monotonic()) - self._said < EVERY:
            return
        self._said = now
        of = f" of {self._total:,.0f}" if self._total else ""
        write(f"{self._about}: {self._done:,.0f}{of} {self._unit}\n")


def _counted(count: int | float, unit: str) -> str:
    return f"{count:,.0f} {unit if count != 1 else re.sub('(?<=ch)es$|s$', '', unit)}"


@contextlib.contextmanager
def _quietly(drawn: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enters a display of rich; a terminal that closes meanwhile is not an error."""
    with contextlib.suppress(OSError):
        drawn.__enter__()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            drawn.__exit__(None, None, None)
