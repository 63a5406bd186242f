"""Signals that end a command: at once, or after the current step is saved.

Python runs a signal's handler in the main thread, which may be busy compiling; a second thread
reads the signal from a pipe at once, and ends the process if the main thread does not.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from recursia import console
from recursia.errors import Preempted

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # signals that end a run
GRACE_SECONDS = 2.0  # for the main thread to end the process in order
INTERRUPTED = 128 + signal.SIGINT

_leaving = threading.Lock()


class Left(KeyboardInterrupt):
    """A signal ended the command, which had nothing to save; no `except Exception` stops it.

    Attributes:
      exit_code: of the process: 130 for Ctrl-C, 75 for a signal from a scheduler.
    """

    def __init__(self, number: int):
        """Makes the message and the exit code of a signal's number."""
        is_typed = number == signal.SIGINT
        self.exit_code = INTERRUPTED if is_typed else Preempted.exit_code
        stopped = "stopped by a signal; there was nothing to save; run the same command to resume"
        super().__init__("interrupted" if is_typed else stopped)


class Listener:
    """Handles signals until it is closed; signals that the process ignored stay ignored.

    The first signal raises `Left` in the main thread, or is only recorded if there is something to
    save. After it, Ctrl-C ends the process at once and other signals do nothing.

    Attributes:
      received: the first signal; None until it arrives.
      has_work: whether there is something to save, so that a signal does not raise.
    """

    def __init__(self, numbers: Iterable[int], saves: Callable[[int], None] | None = None):
        """Installs the handlers; outside the main thread, where Python allows none, does nothing.

        Args:
          numbers: the signals.
          saves: called with the first signal if there is something to save.
        """
        self.received: int | None = None
        self.has_work = False
        self._saves = saves or (lambda _: None)
        self._before: dict[int, Any] = {}
        self._swallows = sys.unraisablehook
        self._wakeup = -1
        self._had_terminal = has_terminal()
        if threading.current_thread() is not threading.main_thread():
            return
        read, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        sys.unraisablehook = self._swallowed
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
                if isinstance(outer := _owner(self._before[number]), Listener):
                    self.received = self.received or outer.received

    def close(self) -> None:
        """Restores the handlers from before; an outer listener then knows of this one's signal."""
        if self._wakeup < 0:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
            if self.received is not None and isinstance(outer := _owner(handler), Listener):
                outer.received, outer.has_work = outer.received or self.received, True
        sys.unraisablehook = self._swallows
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._wakeup)  # the thread's read then returns nothing, and it ends
        self._wakeup = -1

    def outlast(self, code: int) -> None:
        """Ignores signals while the program ends; Ctrl-C ends it at once with its exit code."""
        for number in self._before:
            is_typed = number == signal.SIGINT
            signal.signal(number, (lambda *_: os._exit(code)) if is_typed else signal.SIG_IGN)

    def _counts(self, number: int) -> bool:
        """Returns whether a signal ends the command: SIGHUP from a lost terminal does not."""
        lost = number == signal.SIGHUP and self._had_terminal and not has_terminal()
        return number in self._before and not lost

    def _handle(self, number: int, _: Any) -> None:
        if not self._counts(number):
            return
        if self.received is not None:
            if number == signal.SIGINT:
                leave(Left(number))
            return
        self.received = number
        if not self.has_work:
            raise Left(number)
        self._saves(number)

    def _swallowed(self, raised: Any) -> None:
        """Ends the process if a finalizer or a callback has swallowed what the handler raised."""
        if isinstance(raised.exc_value, Left):
            leave(raised.exc_value)
        self._swallows(raised)

    def _watch(self, read: int) -> None:
        seen = None
        while data := os.read(read, 1):
            number = data[0]
            if not self._counts(number):
                continue
            if seen is not None and number == signal.SIGINT:
                leave(Left(number))
            seen = seen or number
            if not self.has_work:
                time.sleep(GRACE_SECONDS)
                if self._wakeup >= 0 and not self.has_work:
                    leave(Left(seen))
        os.close(read)


def _owner(handler: Any) -> Any:
    return getattr(handler, "__self__", None)


def leave(why: Left) -> NoReturn:
    """Prints why and ends the process at once, whatever its threads are doing."""
    if not _leaving.acquire(blocking=False):  # the other thread is ending it
        time.sleep(GRACE_SECONDS)
    if console.is_live():
        console.write("\033[?25h")  # shows the cursor, which a spinner hides
    console.say(f"recursia: {why}")
    console.flush()
    os._exit(why.exit_code)


def has_terminal() -> bool:
    """Returns whether the process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
