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
    code = 1  # of an error that is ours
    try:
        streams.outlive_readers()
        from recursia import cli

        code = cli.main(sys.argv[1:])
    except KeyboardInterrupt as error:
        code = getattr(error, "exit_code", signals.INTERRUPTED)
        console.say(f"recursia: {error or 'interrupted'}")
        # All is closed but for threads of libraries, which do not bear to be interrupted.
        os._exit(code)
    finally:
        listener.outlast(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
