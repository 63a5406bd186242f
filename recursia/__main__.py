"""The program: `recursia VERB`, or `python -m recursia VERB`.

It listens for signals, and makes the streams outlive their readers, before it imports anything that
takes time.
"""

import os
import signal
import sys
from typing import Any

_RUN = ("SIGTERM", "SIGUSR1", "SIGHUP")  # signals after which a run is started again
_RUNS = (["train"], ["sweep"])  # verbs that are runs


def _leave(number: int, _: Any) -> None:
    """Ends the process before anything is imported that could do it better."""
    is_typed = number == signal.SIGINT
    stopped = "stopped by a signal; there was nothing to save; run the same command to resume"
    os.write(2, f"recursia: {'interrupted' if is_typed else stopped}\n".encode())
    os._exit(130 if is_typed else 75)


for _name in ("SIGINT", *(_RUN if sys.argv[1:2] in _RUNS else ())):
    if signal.getsignal(_number := getattr(signal, _name)) in (
        signal.SIG_DFL,
        signal.default_int_handler,
    ):
        signal.signal(_number, _leave)

from recursia import console, signals, streams  # noqa: E402 - a signal may come before


def main() -> int:
    """Runs the command that was typed; returns its exit code."""
    is_run = sys.argv[1:2] in _RUNS
    listener = signals.Listener(signals.ENDINGS if is_run else (signal.SIGINT,))
    try:
        streams.outlive_readers()
        from recursia import cli

        code = cli.main(sys.argv[1:])
    except KeyboardInterrupt as error:
        code = getattr(error, "exit_code", signals.INTERRUPTED)
        console.say(f"recursia: {error or 'interrupted'}")
    listener.outlast(code)
    if code:
        # What we opened is closed. Threads of libraries that read ahead or save do not bear to be
        # cut short by the interpreter's own end, and say so at length.
        console.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
