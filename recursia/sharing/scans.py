"""A walk's steps divided into scans: programs grow with the pattern of keys, not with the depth.

Every period of a scan repeats one pattern: its steps read keys that the same period made, or keys
that an earlier scan made. Steps whose pattern does not repeat within a few periods are a scan of
one period.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from recursia.sharing.schedule import Schedule

_LONGEST = 4  # units of a period


@dataclasses.dataclass(frozen=True)
class Scan:
    """Neighbouring steps of a walk that one scan applies, a period in each of its iterations.

    Attributes:
      start: the first step, by its place in the walk.
      period: number of steps of one period.
      num_periods: iterations of the scan.
      cached: steps of a period, counted from its first, whose keys a step after the period reads.
    """

    start: int
    period: int
    num_periods: int
    cached: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The step after the last."""
        return self.start + self.period * self.num_periods

    @property
    def starts(self) -> range:
        """The first step of each period."""
        return range(self.start, self.stop, self.period)

    @property
    def owners(self) -> tuple[int, ...]:
        """The steps whose keys are cached, in order."""
        return tuple(first + step for first in self.starts for step in self.cached)


@dataclasses.dataclass(frozen=True)
class _Role:
    """What a step does in its period; steps of the same role in every period can be scanned over.

    Attributes:
      source: what made the keys that it reads: its own period, a number of the cached stacks, or
        an earlier period of the same scan, which no scan can read.
      offset: of the owner in the period, or the step itself where no scan is possible.
      is_cached: whether a step after the period reads its keys.
      window: keys that it sees.
      shape: number of the shapes of its weights.
    """

    source: int | str
    offset: int = 0
    is_cached: bool = False
    window: int = 0
    shape: int = 0


@functools.lru_cache
def divide(
    schedule: Schedule,
    start: int,
    stop: int,
    unit: int = 1,
    cached: tuple[tuple[int, ...], ...] = (),
) -> tuple[Scan, ...]:
    """Divides the steps [start, stop) of a walk into scans.

    Args:
      schedule: of the steps.
      start: the first step, by its place in the walk.
      stop: the step after the last.
      unit: a period is a multiple of so many steps: 1, or the blocks of a recursion.
      cached: the steps before `start` whose keys are cached, those stacked together in one tuple;
        of the pass before as in `Schedule.read_places`.
    """
    found: list[Scan] = []
    first = start
    while first < stop:
        role = functools.partial(
            _role, schedule, [*cached, *(scan.owners for scan in found)], first
        )
        fits = [p for n in range(1, _LONGEST + 1) if (p := n * unit) <= stop - first]
        counts = {period: _num_periods(role, first, stop, period) for period in fits}
        repeated = [period for period in fits if counts[period] > 1]
        period = max(repeated, key=lambda p: (p * counts[p], -p), default=unit)
        roles = [role(period, first + step) for step in range(period)]
        is_cached = tuple(step for step, each in enumerate(roles) if each.is_cached)
        found.append(Scan(first, period, max(counts[period], 1), is_cached))
        first = found[-1].stop
    return tuple(found)


def _role(
    schedule: Schedule, stacks: Sequence[tuple[int, ...]], first: int, period: int, step: int
) -> _Role:
    """Returns the role of a step in a scan that starts at `first`."""
    begin = first + (step - first) // period * period
    owner, last_reader = int(schedule.read_places[step]), int(schedule.last_readers[step])
    if first <= owner < begin:
        return _Role("another period", step)
    is_cached, number = last_reader >= begin + period, schedule.steps[step]
    seen = int(schedule.seen[number]), int(schedule.shape[number])
    if owner >= begin:
        return _Role("period", owner - begin, is_cached, *seen)
    (source,) = (i for i, owners in enumerate(stacks) if owner in owners)
    return _Role(source, 0, is_cached, *seen)


def _num_periods(role: Callable[[int, int], _Role], first: int, stop: int, period: int) -> int:
    """Returns how many periods from `first` on repeat the roles of the first of them."""
    roles, end = [role(period, first + step) for step in range(period)], first
    while end < stop and role(period, end) == roles[(end - first) % period]:
        end += 1
    return (end - first) // period
