"""The base of sinks, which get the rows and samples of a run as they are made."""

import pathlib
from typing import Any, ClassVar

from recursia import settings

Row = dict[str, Any]  # numbers and lists of numbers by name, and the step as "step"


class Sink:
    """Gets the rows and samples of a run; by itself it does nothing with them.

    A subclass is one file in `recursia.train.sinks`, whose name `log.sinks` takes, or a class of
    the user's, whose dotted path it takes.

    Attributes:
      IS_ASIDE: whether it has a thread of its own, so that what it waits for holds up no training.
    """

    IS_ASIDE: ClassVar[bool] = True

    def __init__(self, workdir: pathlib.Path, start: int, run: settings.Run):
        """Opens the sink.

        Args:
          workdir: the run's directory.
          start: step from which the run goes on; what was written of later ones is void.
          run: the settings.
        """

    def write(self, row: Row) -> None:
        """Takes a row of a training step or a validation."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Takes a text that continues a prompt."""

    def flush(self) -> None:
        """Writes what waits, where that is far away."""

    def close(self) -> None:
        """Ends: nothing comes after it."""


def curves(row: Row) -> dict[str, float]:
    """Returns the numbers of a row by name, "name/0" and so on for those of a list."""
    found: dict[str, float] = {}
    for name, value in row.items():
        entries = enumerate(value) if isinstance(value, list) else [("", value)]
        found |= {f"{name}/{at}" if at != "" else name: entry for at, entry in entries}
    return found
