"""The state of a trial, as its directory says."""

import pathlib

from recursia.config import RECORD
from recursia.errors import Diverged, Lost, Preempted
from recursia.signals import INTERRUPTED
from recursia.workdir import ending, place

PENDING, RUNNING, STOPPED = "pending", "running", "stopped"
FINISHED, DIVERGED, PRUNED, FAILED = "finished", "diverged", "pruned", "failed"
STATES = (PENDING, RUNNING, STOPPED, FINISHED, DIVERGED, PRUNED, FAILED)
RESULTS = (FINISHED, DIVERGED, PRUNED)  # of trials that are never run again
RESUMABLE = (Preempted.exit_code, Lost.exit_code, INTERRUPTED)  # exit codes of a stopped trial
PRUNING = "pruned"  # a file of a trial that a search has given up


def of(folder: pathlib.Path) -> tuple[str, str]:
    """Returns the state of the run in a directory, and the reason of one that ended badly.

    Raises:
      StorageError: if the directory is in a bucket that cannot be reached.
    """
    if place.of(folder).is_live(folder):
        return RUNNING, ""
    code, why = ending.read(folder) or (None, "")
    if code != 0 and (folder / PRUNING).exists():
        return PRUNED, ""
    if code is None or code in RESUMABLE:
        return (STOPPED if (folder / RECORD).exists() else PENDING), ""
    return {0: FINISHED, Diverged.exit_code: DIVERGED}.get(code, FAILED), why
