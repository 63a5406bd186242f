"""What a signal does to a command: it ends it at once, or once the step under way is saved.

Two see each signal: the main thread, as soon as it is back from whatever it waits for, and a thread
of this page at once, even while the main thread compiles.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from recursia import console
from recursia.errors import Preempted

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # what ends a run
GRACE_SECONDS = 2.0  # for the main thread to leave in order
INTERRUPTED = 128 + signal.SIGINT

_leaving = threading.Lock()


class Left(KeyboardInterrupt):
    """The command ends here, having nothing to save; no `except Exception` stops it.

    Attributes:
      exit_code: of the process: 130 for Ctrl-C, 75 for what a scheduler sends.
    """

    def __init__(self, number: int):
        """Says why.

        Args:
          number: the signal.
        """
        is_typed = number == signal.SIGINT
        self.exit_code = INTERRUPTED if is_typed else Preempted.exit_code
        about = "told to stop; there was nothing new to save; run it again to go on"
        super().__init__("interrupted" if is_typed else about)


class Listener:
    """Listens until it is closed; signals that were ignored before are ignored still.

    The first signal raises `Left` in the main thread, or is only noted where there is something to
    save. After it Ctrl-C leaves at once, and the other signals do nothing.

    Attributes:
      told: the first signal; None until it comes.
      has_work: whether there is something to save, so that the command goes on after a signal.
    """

    def __init__(self, numbers: Iterable[int], saves: Callable[[int], None] | None = None):
        """Listens from now on; outside the main thread there is nothing to hear.

        Args:
          numbers: signals.
          saves: is called with the first signal where there is something to save.
        """
        self.told: int | None = None
        self.has_work = False
        self._saves = saves or (lambda _: None)
        self._before: dict[int, Any] = {}
        self._wakeup = -1
        self._had_terminal = has_terminal()
        if threading.current_thread() is not threading.main_thread():
            return
        read, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)

    def close(self) -> None:
        """Gives the signals back; one who listened before knows then what this one was told."""
        if self._wakeup < 0:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
            if self.told is not None and isinstance(outer := _owner(handler), Listener):
                outer.told, outer.has_work = outer.told or self.told, True
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._wakeup)  # upon which the thread ends
        self._wakeup = -1

    def outlast(self, code: int) -> None:
        """Keeps a program's exit code while it ends: of all signals Ctrl-C alone still counts."""
        for number in self._before:
            is_typed = number == signal.SIGINT
            signal.signal(number, (lambda *_: os._exit(code)) if is_typed else signal.SIG_IGN)

    def _counts(self, number: int) -> bool:
        """Returns whether it ends the run: a terminal that is lost ends none."""
        lost = number == signal.SIGHUP and self._had_terminal and not has_terminal()
        return number in self._before and not lost

    def _handle(self, number: int, _: Any) -> None:
        if not self._counts(number):
            return
        if self.told is not None:
            if number == signal.SIGINT:
                leave(Left(number))
            return
        self.told = number
        if not self.has_work:
            raise Left(number)
        self._saves(number)

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
    """Ends the process at once, whatever its threads are doing."""
    if not _leaving.acquire(blocking=False):  # the other thread is at it
        time.sleep(GRACE_SECONDS)
    if console.is_live():
        console.write("\033[?25h")  # the cursor, which a spinner hides
    console.say(f"recursia: {why}")
    console.flush()
    os._exit(why.exit_code)


def has_terminal() -> bool:
    """Returns whether the process has a terminal that controls it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
