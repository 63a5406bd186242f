"""Optuna's journal in a bucket, where nothing is appended to: a numbered object for each entry.

Whoever adds an entry creates the next number, which a bucket grants to one alone; the others read
that one first. No object is written twice, so that all workers read the same entries in one order.
"""

import json
import uuid
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from recursia import storage


class Journal(BaseJournalBackend):
    """The entries of a folder."""

    def __init__(self, folder: Any):
        """Reads nothing yet.

        Args:
          folder: of the journal alone, which may not exist.
        """
        self._folder, self._count = folder, 0
        self._logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Returns what all workers have added so far, from a number on.

        Raises:
          StorageError: if the bucket cannot be reached.
          ValueError, KeyError, TypeError: if an object is none of a journal.
        """
        width = 1
        while self._take(storage.at_once(self._entry, range(self._count, self._count + width))):
            width = storage.AT_ONCE
        return self._logs[log_number_from:]

    def _entry(self, number: int) -> dict[str, Any] | None:
        try:
            return json.loads((self._folder / _name(number)).read_bytes())
        except FileNotFoundError:
            return None

    def _take(self, entries: list[dict[str, Any] | None]) -> bool:
        """Adds entries up to the first that is missing; returns whether none is."""
        for entry in entries:
            if entry is None:
                return False
            self._logs += entry["logs"]
            self._count += 1
        return True

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds an entry after all others; raises as `read_logs` does."""
        entry = {"by": uuid.uuid4().hex, "logs": logs}
        contents = json.dumps(entry, separators=(",", ":")).encode()
        while True:
            try:
                (self._folder / _name(self._count)).write_bytes(contents, is_new=True)
            except FileExistsError:
                before = self._entry(self._count)
                if before is not None and before["by"] != entry["by"]:
                    self._take([before])
                    continue  # else a first try was written, and its answer lost
            self._take([entry])
            return


def _name(number: int) -> str:
    return f"{number:09}.json"
