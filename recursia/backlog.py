"""Lines of a file that wait in memory while it cannot be written, as the reader is told of them."""

from typing import Any

from recursia import console


class Backlog:
    """What is said of the lines of a file that wait: once that they do, and once that none does."""

    def __init__(self, path: Any):
        """Begins without lines.

        Args:
          path: of the file, for the messages.
        """
        self._path, self._is_known = path, False

    def grow(self, error: OSError) -> None:
        """Says why lines wait, the first time."""
        if not self._is_known:
            console.say(
                f"{self._path}: cannot be written ({error.strerror}); its lines wait in memory, "
                "and the run goes on"
            )
        self._is_known = True

    def clear(self) -> None:
        """Says that all lines are written, if some waited."""
        if self._is_known:
            console.say(f"{self._path}: is written again, and complete")
        self._is_known = False

    def lose(self, count: int) -> None:
        """Says how many lines are lost at the end, if any are."""
        if count:
            console.say(f"{self._path}: {count} lines could not be written")
