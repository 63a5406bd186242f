"""How a run ended, as its directory says: the exit code and the message of its last start."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator

from recursia import jsonfile
from recursia.errors import StorageError
from recursia.workdir import place

FILE = "end.json"
LONGEST = 500  # characters of a message
CRASHED = 1  # the exit code of an exception that is no user's error


@contextlib.contextmanager
def recorded(workdir: pathlib.Path) -> Iterator[None]:
    """Writes how what is inside ended.

    A process that is killed writes nothing, and neither does one that is refused, or has nothing to
    do, where an earlier one has finished: see `begin`.
    """
    code, what = 0, ""
    try:
        yield
    except BaseException as error:
        what = str(error) if hasattr(error, "exit_code") else f"{type(error).__name__}: {error}"
        code = getattr(error, "exit_code", CRASHED)
        raise
    finally:
        with contextlib.suppress(StorageError):
            if (read(workdir) or (None, ""))[0] != 0:
                write(workdir, code, what)


def begin(workdir: pathlib.Path) -> None:
    """Deletes what an earlier start wrote, before the run changes its directory."""
    with contextlib.suppress(OSError):
        (workdir / FILE).unlink(missing_ok=True)


def write(workdir: pathlib.Path, code: int, why: str) -> None:
    """Writes an exit code and its reason; a full disk loses them."""
    row = {"code": code, "why": " ".join(why.split())[:LONGEST], "time": round(time.time(), 3)}
    path = workdir / FILE
    with contextlib.suppress(OSError):
        place.of(path).put(path, (json.dumps(row) + "\n").encode())


def read(workdir: pathlib.Path) -> tuple[int, str] | None:
    """Returns the exit code and its reason; None if the run has not ended, or was killed.

    Raises:
      StorageError: if its directory is in a bucket that cannot be reached.
    """
    try:
        row = jsonfile.read(workdir / FILE)
        return int(row["code"]), str(row["why"])
    except StorageError:
        raise
    except (OSError, ValueError, TypeError, LookupError, OverflowError):
        return None
