"""Sharing of keys and values across steps, and sliding windows: constructors of their tables.

"own": every step makes keys and values of the tokens it processes.
"first_recursion": the first recursion makes them, and the same block of later recursions reads them
(Bae et al. 2025, arXiv 2507.10524). "groups/2": the first of 2 neighbouring steps makes them for
both (Brandon et al. 2024, arXiv 2405.12981). "spread/3": 3 steps at even distances make them, the
first step among them, each for the steps before the next of the 3 (Zuhri et al. 2024, arXiv
2406.09297). "upper_half": the step in the middle makes them for all after it (Sun et al. 2024,
arXiv 2405.05254). Or a table: for each recursion, the number of the step whose keys each block
reads; steps are numbered recursion by recursion. Or the dotted path of a subclass of `Owners`.

A step may read the keys of a later one. "top/1": the first and the last step make keys for
themselves, and the last step but one for all between them; "middle/1": the middle one of these does
(Wu & Tu 2024, arXiv 2405.10637; Wu et al. 2024, arXiv 2410.14442). The number is that of steps at
each end. "last_recursion", "middle_recursion": the same block of that recursion makes them. A token
then sees such keys of the tokens before it alone, and training runs the steps between the two
several times (`recursia.sharing.passes`).

`reads` says what is shared: keys and values; or queries and keys, by which steps share their
attention probabilities and keep values of their own (after EchoAtt, Rajabzadeh et al. 2024, arXiv
2409.14595). "below/2": of the steps between 2 at each end all read those of the last one below.
"""

import abc
import dataclasses
import re
from collections.abc import Callable

import numpy as np

from recursia import dotted, ranges
from recursia.errors import ConfigError
from recursia.sharing.schedule import Reads, Schedule, Table

_TAKES = (
    "takes 'own', 'first_recursion', 'middle_recursion', 'last_recursion', 'groups/2', 'spread/3', "
    "'upper_half', 'top/1', 'middle/1', 'below/2', a table, or MODULE.CLASS of your own"
)


class Owners(abc.ABC):
    """Base of a user's own sharing of keys and values, which takes no arguments."""

    @abc.abstractmethod
    def owner(self, place: int, schedule: Schedule) -> int:
        """Returns the place of the step whose keys and values a step reads.

        Args:
          place: of the step in the order in which steps are applied, from 0.
          schedule: of the core: `num_steps`, `num_blocks`, `num_recursions`.
        """


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sharing of keys and values across steps, and sliding windows.

    Attributes:
      kv_sharing: the step whose keys and values a step reads: "own", "first_recursion",
        "middle_recursion", "last_recursion", groups such as "groups/2", "spread/3" of three steps
        that make them, "upper_half", "top/1" or "middle/1" with one step at each end that makes its
        own, "below/2" with two, a table, or the dotted path of a subclass of `Owners`.
      reads: what it reads: "keys_values"; or "queries_keys", which it replays with values of its
        own: the step then has no weights of queries and keys, and its KV cache holds values alone.
      window: sliding window in tokens, the query's own included; 0 is no bound. Under "upper_half"
        it holds for the lower half of the steps, otherwise for all. Or a table: for each recursion,
        the window of each block.
      num_free_passes: how often training, and scores as published, run steps that read the keys of
        later ones without a gradient; decoding needs no such passes.
      num_trained_passes: how often they are then run with a gradient, at least 1.
    """

    kv_sharing: str | Table = "own"
    window: int | Table = 0
    num_free_passes: int = 7
    num_trained_passes: int = 2
    reads: Reads = "keys_values"

    def __post_init__(self):
        if isinstance(self.window, int):
            ranges.at_least(0, self, "window")
        elif least := [bound for row in self.window for bound in row if bound < 0]:
            raise ValueError(f"window: got {least[0]} in the table, takes at least 0")
        ranges.at_least(0, self, "num_free_passes")
        ranges.at_least(1, self, "num_trained_passes")
        named = r"own|(first|middle|last)_recursion|upper_half|(groups|spread)/[1-9]\d*"
        named += r"|(top|middle)/\d+|below/[1-9]\d*"
        if self._is_own:
            _own(self.kv_sharing)
        elif isinstance(self.kv_sharing, str) and not re.fullmatch(named, self.kv_sharing):
            raise ValueError(f"kv_sharing: got {self.kv_sharing!r}, {_TAKES}")

    @property
    def _is_own(self) -> bool:
        return isinstance(self.kv_sharing, str) and "." in self.kv_sharing

    def added_to(self, schedule: Schedule) -> Schedule:
        """Returns a schedule with the tables of keys and of windows.

        Raises:
          ValueError: for a table of another shape, or if a step reads keys that are not made.
        """
        keys = self.kv_sharing
        if isinstance(keys, str):
            owner, steps = self._owner(schedule), schedule.steps
            keys = _table(schedule, lambda place: int(steps[owner(place)]))
        windows = self._windows(schedule)
        for name, table in (("kv.kv_sharing", keys), ("kv.window", windows)):
            _check(name, table, schedule)
        made = dataclasses.replace(
            schedule,
            keys=() if self.kv_sharing == "own" else keys,
            windows=windows if self.window else (),
            reads=self.reads,
        )
        passes = self.num_free_passes, self.num_trained_passes
        return dataclasses.replace(made, passes=passes) if made.is_cyclic else made

    def _windows(self, schedule: Schedule) -> Table:
        if not isinstance(window := self.window, int):
            return window
        count = schedule.num_steps
        stop = count // 2 if self.kv_sharing == "upper_half" else count
        return _table(schedule, lambda place: window if place < stop else 0)

    def _owner(self, schedule: Schedule) -> Callable[[int], int]:
        """Returns the function from a place in the walk to that of the step whose keys it reads."""
        if self._is_own:
            return lambda place: _checked(_own(self.kv_sharing), place, schedule)
        count, (name, _, number) = schedule.num_steps, str(self.kv_sharing).partition("/")
        match name:
            case "first_recursion" | "middle_recursion" | "last_recursion":
                last = schedule.num_recursions - 1
                chosen = {"first_recursion": 0, "last_recursion": last}.get(name, last // 2)
                return lambda place: _in_recursion(chosen, place, schedule)
            case "top" | "middle" | "below":
                first, last = int(number), count - 1 - int(number)
                if first > last:
                    raise ValueError(
                        f"kv.kv_sharing: {number} steps at each end make their own keys, and of "
                        f"{count} none is between; take at most {(count - 1) // 2}"
                    )
                maker = {"top": last, "middle": (first + last) // 2, "below": first - 1}[name]
                return lambda place: maker if first <= place <= last else place
            case "groups":
                return lambda place: place // int(number) * int(number)
            case "spread":
                if int(number) > count:
                    raise ValueError(
                        f"kv.kv_sharing: {number} steps make keys, and there are {count}"
                    )
                makers = [0, *((i + 1) * count // int(number) for i in range(int(number) - 1))]
                return lambda place: max(maker for maker in makers if maker <= place)
            case "upper_half":
                return lambda place: min(place, count // 2)
        return lambda place: place


def _in_recursion(number: int, place: int, schedule: Schedule) -> int:
    """Returns the place of a step's block in another recursion."""
    step = number * schedule.num_blocks + int(schedule.steps[place]) % schedule.num_blocks
    return int(np.flatnonzero(schedule.steps == step)[0])


def _own(path: str | Table) -> Owners:
    """Returns what a dotted path names.

    Raises:
      ValueError: if it names no class of this kind.
    """
    try:
        cls = dotted.subclass(Owners, str(path))
        return cls()
    except (ConfigError, TypeError) as error:  # a TypeError of arguments, or of a missing method
        raise ValueError(f"kv_sharing: {error}") from None


def _checked(owners: Owners, place: int, schedule: Schedule) -> int:
    """Returns the place of a step's owner.

    Raises:
      ValueError: if it is none.
    """
    found = owners.owner(place, schedule)
    if not isinstance(found, int) or not 0 <= found < schedule.num_steps:
        raise ValueError(
            f"kv.kv_sharing: owner({place}) is {found!r}, and a step can read the keys of those at "
            f"0 to {schedule.num_steps - 1}"
        )
    return found


def _table(schedule: Schedule, value: Callable[[int], int]) -> Table:
    """Returns the table of a function of a step's place in the walk."""
    rows = [[0] * schedule.num_blocks for _ in range(schedule.num_recursions)]
    for place, step in enumerate(schedule.steps.tolist()):
        rows[step // schedule.num_blocks][step % schedule.num_blocks] = value(place)
    return tuple(map(tuple, rows))


def _check(name: str, table: Table, schedule: Schedule) -> None:
    """Refuses a table whose shape is not that of the steps."""
    rows, blocks = schedule.num_recursions, schedule.num_blocks
    if (len(table), {len(row) for row in table}) != (rows, {blocks}):
        raise ValueError(
            f"{name}: the table has rows of {[len(row) for row in table]}, the model {rows} "
            f"recursions of {blocks} blocks"
        )
