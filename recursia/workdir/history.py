"""The history of a run's checkpoints, kept apart from them: which were saved, and their scores.

`checkpoints.jsonl` has a row for each finished save and one for each validation. A directory whose
history names saves, but which holds none of them, has lost them; it is not a new run.
"""

import math
import pathlib
import time
from typing import Any

from recursia import jsonlines
from recursia.workdir import place

FILE = "checkpoints.jsonl"


class History:
    """The finished saves of a run and their validation losses.

    Attributes:
      path: the file.
      saved: the row of each saved step; `time` is in seconds since 1970.
      losses: the validation loss of steps, in nats per token.
    """

    def __init__(self, path: pathlib.Path):
        """Reads the file, if there is one."""
        self.path = path
        self.saved: dict[int, dict[str, Any]] = {}
        self.losses: dict[int, float] = {}
        for row in jsonlines.rows(path):
            self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        if (loss := jsonlines.number(row.get("validation_loss"))) is not None:
            self.losses[row["step"]] = loss
        else:
            self.saved[row["step"]] = row

    def add(self, step: int, **values: Any) -> None:
        """Appends a row; a full disk loses the row and stops nothing."""
        row = {"step": step, **values, "time": round(time.time(), 3)}
        self._take(row)
        try:
            place.of(self.path).append(self.path, jsonlines.line(row))
        except OSError:
            return

    def surplus(self, steps: list[int], last: int, every: int, best: int) -> list[int]:
        """Returns the steps that need not be kept.

        Args:
          steps: that are saved, in order.
          last: number of the latest that are kept.
          every: multiples of it are kept; 0 keeps none for that.
          best: number of those with the lowest finite validation loss that are kept.
        """
        finite = (s for s in steps if math.isfinite(self.losses.get(s, math.nan)))
        scored = sorted(finite, key=lambda s: (self.losses[s], -s))
        kept = {*steps[-last:], *scored[:best], *(s for s in steps if every and s % every == 0)}
        return [step for step in steps if step not in kept]
