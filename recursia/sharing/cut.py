"""Steps cut into runs, each of which is one scan: a program grows with the pattern of keys alone.

Inside a run every period does the same: its steps read keys that the period made, or keys of
earlier runs. What does not repeat within a few periods is a run of its own.
"""

import dataclasses
import functools
from typing import Any

from recursia.sharing.schedule import Schedule

_LONGEST = 4  # units of a period


@dataclasses.dataclass(frozen=True)
class Run:
    """Steps that one scan takes, by their place in the walk.

    Attributes:
      start: the first.
      period: steps of one turn of the scan.
      turns: of the scan.
      kept: steps of a period, from 0, whose keys a step after the period reads.
    """

    start: int
    period: int
    turns: int
    kept: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The step after the last."""
        return self.start + self.period * self.turns

    @property
    def owners(self) -> tuple[int, ...]:
        """The steps whose keys are kept, in order."""
        begins = range(self.start, self.stop, self.period)
        return tuple(begin + step for begin in begins for step in self.kept)


@functools.lru_cache
def runs(
    schedule: Schedule, start: int, stop: int, unit: int = 1, kept: tuple[tuple[int, ...], ...] = ()
) -> tuple[Run, ...]:
    """Cuts the steps [start, stop) of a walk into runs.

    Args:
      schedule: of the steps.
      start: the first, by its place in the walk.
      stop: the step after the last.
      unit: steps that stay together: 1, or those of a recursion.
      kept: the steps before `start` whose keys are at hand, those stacked together in one tuple.
    """
    owners, last_reader = schedule.in_walk
    windows = schedule.seen[schedule.steps]
    found: list[Run] = []

    def role(step: int, first: int, period: int) -> tuple[Any, ...]:
        begin = first + (step - first) // period * period
        owner, is_kept = int(owners[step]), bool(last_reader[step] >= begin + period)
        if owner >= begin:
            return "period", owner - begin, is_kept, int(windows[step])
        if owner >= first:
            return "no scan", step
        at_hand = (*kept, *(run.owners for run in found))
        (source,) = (i for i, stacked in enumerate(at_hand) if owner in stacked)
        return "earlier", source, is_kept, int(windows[step])

    def turns(first: int, period: int) -> int:
        roles, end = [role(first + step, first, period) for step in range(period)], first
        while end < stop and role(end, first, period) == roles[(end - first) % period]:
            end += 1
        return (end - first) // period

    first = start
    while first < stop:
        fits = [p for n in range(1, _LONGEST + 1) if (p := n * unit) <= stop - first]
        counts = {period: turns(first, period) for period in fits}
        repeated = [period for period in fits if counts[period] > 1]
        period = max(repeated, key=lambda p: (p * counts[p], -p), default=unit)
        roles = [role(first + step, first, period) for step in range(period)]
        is_kept = tuple(step for step, each in enumerate(roles) if each[2] is True)
        found.append(Run(first, period, max(counts[period], 1), is_kept))
        first = found[-1].stop
    return tuple(found)
