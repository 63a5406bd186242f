"""The program: `recursia VERB`, or `python -m recursia VERB`.

It listens for signals, and makes the streams outlive their readers, before it imports anything that
takes time.
"""

import os
import signal
import sys

from recursia import console, signals, streams


def main() -> int:
    """Runs the command that was typed; returns its exit code."""
    is_run = sys.argv[1:2] == ["train"]
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
