"""Batches read ahead of the steps, so that all processes stop before one that cannot be read.

A step needs the rows of every process. The one that cannot read its own says so while it still has
those of the steps up to which the others may go: a process counts a step once the one before is
done, and all stop after the first step that none has counted.
"""

import collections
import itertools
from collections.abc import Callable, Iterator

from recursia import distributed
from recursia.data.loader import Batch
from recursia.errors import DataError, UserError

AHEAD = 2  # batches in hand beyond the next, with several processes


class Ahead:
    """The batches of a run's steps, in order.

    Attributes:
      failure: why a later batch cannot be read, once that is known.
    """

    def __init__(self, batches: Iterator[Batch], count: int, ask: Callable[[], None]):
        """Reads nothing yet.

        Args:
          batches: without end.
          count: steps to come.
          ask: tells all processes to stop; returns when they know.
        """
        self._batches, self._ask = itertools.islice(batches, count), ask
        self._ready: collections.deque[Batch] = collections.deque()
        self._wanted = 1 if distributed.is_alone() else 1 + AHEAD
        self.failure: DataError | None = None

    def fill(self) -> None:
        """Reads the first batches; raises DataError, in all processes, if one cannot be read."""
        with distributed.together():
            self._read()
            if self.failure is not None:
                raise self.failure

    def next(self) -> Batch:
        """Returns the next batch.

        Raises:
          DataError: if it cannot be read, and with several processes, did not stop in time.
        """
        had = self.failure
        self._read()
        if self.failure is not None:
            if not self._ready:
                raise self.failure
            if had is None:
                self._ask()
        return self._ready.popleft()

    def _read(self) -> None:
        try:
            while self.failure is None and len(self._ready) < self._wanted:
                if (batch := next(self._batches, None)) is None:
                    return
                self._ready.append(batch)
        except DataError as error:
            self.failure = error


def saved(error: UserError, step: int) -> UserError:
    """Returns an error that also says which step was saved before it ended the run."""
    reason = str(error).rstrip(".")
    longer = type(error)(f"{reason}; saved step {step}, from which the same command resumes")
    longer.exit_code = error.exit_code
    return longer
