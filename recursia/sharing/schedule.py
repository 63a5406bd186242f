"""Parameter sharing as tables: the bank entries and the keys of each step; host data, never traced.

A *step* is one application of a block. The core of a model is a grid of steps, `num_recursions` by
`num_blocks`, and its *walk* goes recursion by recursion ("cycle") or block by block ("sequence").
For each slot of the block (norms, attention, mlp, router, ...) a table `[recursion][block]` holds
the entry of the slot's *bank* of weights that a step uses, or the entries, as many for every step,
of a slot that is made of several. The table `keys` holds the step whose
keys and values a step reads, and `windows` its sliding window. Steps are numbered recursion by
recursion, whatever the order of the walk. What a step reads may also be queries and keys, which it
replays with values of its own (`Schedule.reads`). Patterns are constructors of these tables
(`recursia.sharing.patterns`): no other module knows which pattern was used.
"""

import dataclasses
import functools
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from recursia import params

KEYS = ".keys"  # ends the name of a slot's second bank
Reads = Literal["keys_values", "queries_keys"]  # what a step reads of another
Order = Literal["cycle", "sequence"]
Table = tuple[tuple[int, ...], ...]  # [recursion][block]
Entries = tuple[tuple[int | tuple[int, ...], ...], ...]  # the same, with one or several in a cell


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The steps of one stack of blocks, with the bank entries and keys that each uses.

    Attributes:
      num_recursions: how often every block is applied.
      num_blocks: blocks of one recursion.
      order: "cycle" walks recursion by recursion, "sequence" block by block.
      entries: for a slot, the entry of its bank at each step; a slot not named has one entry for
        each block, the same in every recursion.
      keys: for each step, the number of the step whose keys and values it reads: its own where it
        makes them. Empty: every step makes its own. The keys of a later step are those that the
        pass before this one left; a token sees those of earlier tokens alone.
      windows: for each step, its sliding window in tokens, the query's own included; 0 is no bound.
        Empty: no step has a window.
      passes: how often training runs the steps of `cycles`, without and then with a gradient.
      reads: what a step reads of the step that `keys` names: its keys and values; or its queries
        and keys, which make up its scores, with values of its own.
      shapes: for each step, the number of the shapes of its weights; no scan applies steps of
        different shapes. Empty: all have the same.
    """

    num_recursions: int
    num_blocks: int
    order: Order = "cycle"
    entries: tuple[tuple[str, Entries], ...] = ()
    keys: Table = ()
    windows: Table = ()
    passes: tuple[int, int] = (0, 1)
    reads: Reads = "keys_values"
    shapes: Table = ()

    def __post_init__(self):
        for step, owner in enumerate(self.owners):
            if not 0 <= owner < self.num_steps or self.owners[owner] != owner:
                raise ValueError(
                    f"kv.kv_sharing: step {step} reads the keys of step {owner}, which makes none; "
                    "name a step that reads its own"
                )
        for place in np.flatnonzero(self.read_places < 0):
            if self.replays:
                step = int(self.steps[place])
                raise ValueError(
                    f"kv.kv_sharing: step {step} replays the queries and keys of step "
                    f"{self.owners[step]}, which comes later: the token's query is not made yet; "
                    "take an earlier step, or kv.reads 'keys_values'"
                )
            if self.seen[step := int(self.steps[place])] == 1:
                raise ValueError(
                    f"kv.window: step {step} has a window of 1 token, its own, whose keys it does "
                    f"not see, for step {self.owners[step]} makes them later; take at least 2"
                )

    @property
    def num_steps(self) -> int:
        """Number of block applications of a token that takes every recursion."""
        return self.num_recursions * self.num_blocks

    @functools.cached_property
    def steps(self) -> Int[np.ndarray, "N"]:
        """The numbers of the steps in the order of the walk."""
        grid = np.arange(self.num_steps).reshape(self.num_recursions, self.num_blocks)
        return (grid if self.order == "cycle" else grid.T).reshape(-1)

    @functools.cached_property
    def owners(self) -> Int[np.ndarray, "N"]:
        """The step whose keys and values each step reads."""
        return self._flat(self.keys) if self.keys else np.arange(self.num_steps)

    @functools.cached_property
    def owner_places(self) -> Int[np.ndarray, "N"]:
        """For each place in the walk, the place of the step whose keys and values it reads."""
        return np.argsort(self.steps)[self.owners[self.steps]]

    @functools.cached_property
    def read_places(self) -> Int[np.ndarray, "N"]:
        """The same, less `num_steps` where that step comes later: in the pass before this one."""
        is_later = self.owner_places > np.arange(self.num_steps)
        return self.owner_places - self.num_steps * is_later

    @functools.cached_property
    def last_readers(self) -> Int[np.ndarray, "N"]:
        """For each place in the walk, the last place that reads its keys; itself if none does.

        A place in the next pass counts `num_steps` more.
        """
        places = np.arange(self.num_steps)
        last = places.copy()
        np.maximum.at(last, self.owner_places, places + self.owner_places - self.read_places)
        return last

    @functools.cached_property
    def segments(self) -> tuple[tuple[int, int, bool], ...]:
        """The walk in parts (start, stop, whether it is a cycle), which run one after the other.

        A cycle begins with a step that reads the keys of a later one, and ends with the last step
        whose keys it, or another step of the cycle, reads.
        """
        found: list[tuple[int, int, bool]] = []
        start = place = 0
        while place < self.num_steps:
            stop = place + 1
            if self.read_places[place] < 0:
                while stop <= (last := self.owner_places[place:stop].max()):
                    stop = int(last) + 1
                found += [(start, place, False), (place, stop, True)]
                start = stop
            place = stop
        found.append((start, place, False))
        return tuple(each for each in found if each[0] < each[1])

    @property
    def is_cyclic(self) -> bool:
        """Whether a step reads the keys of a later one."""
        return bool((self.read_places < 0).any())

    @property
    def has_recursions(self) -> bool:
        """Whether the walk runs each recursion once, one after the other."""
        return self.order == "cycle" and not self.is_cyclic

    @functools.cached_property
    def seen(self) -> Int[np.ndarray, "N"]:
        """The sliding window of each step, in tokens; 0 is no bound."""
        return self._flat(self.windows) if self.windows else np.zeros(self.num_steps, int)

    @functools.cached_property
    def shape(self) -> Int[np.ndarray, "N"]:
        """The number of the shapes of each step's weights."""
        return self._flat(self.shapes) if self.shapes else np.zeros(self.num_steps, int)

    @functools.cached_property
    def makes_all_keys(self) -> bool:
        """Whether every step makes its own keys and values."""
        return bool((self.owners == np.arange(self.num_steps)).all())

    @property
    def varying(self) -> list[str]:
        """What differs between recursions: slots, and the widths of steps."""
        found = [slot for slot, _ in self.entries if self.varies(slot)]
        return [*found, *["the width of steps"] * (len(set(self.shapes)) > 1)]

    @property
    def replays(self) -> bool:
        """Whether some step replays the queries and keys of another."""
        return self.reads == "queries_keys" and not self.makes_all_keys

    @property
    def cached_places(self) -> tuple[int, ...]:
        """The places in the walk of the steps that have a KV cache; one that replays has values."""
        found = range(self.num_steps) if self.replays else self.owner_places.tolist()
        return tuple(sorted(set(found)))

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether every step reads its own keys, or all read keys of the first recursion."""
        return self.makes_all_keys or bool((self.owners < self.num_blocks).all())

    @functools.lru_cache  # noqa: B019 - schedules are few and small
    def entry(self, slot: str) -> Int[np.ndarray, "N *C"]:
        """Returns the entry of a slot's bank that each step uses, or the entries.

        The bank `slot.keys` holds the slot's weights that only make what a step may read of
        another, for the steps that make some. The entry of a step that reads another's is arbitrary
        and unused.
        """
        if slot.endswith(KEYS):
            own, held = self.entry(slot.removesuffix(KEYS)), self.held(slot)
            return np.searchsorted(held, np.where(np.isin(own, held), own, own[self.owners]))
        if slot in dict(self.entries):
            return self._flat(dict(self.entries)[slot])
        return np.tile(np.arange(self.num_blocks), self.num_recursions)

    def held(self, slot: str) -> Int[np.ndarray, "E"]:
        """Returns the entries of the slot's table that its bank holds, in order."""
        if slot.endswith(KEYS):
            return np.unique(self.entry(slot.removesuffix(KEYS))[self.owners])
        return np.arange(self.size(slot))

    def _flat(self, table: Entries) -> Int[np.ndarray, "N *C"]:
        found = np.array(table)
        return found.reshape(self.num_steps, *found.shape[2:])

    def by_recursion(self, slot: str) -> Int[np.ndarray, "R K *C"]:
        """Returns the entry of a slot's bank that each step uses, or the entries, as a table."""
        found = self.entry(slot)
        return found.reshape(self.num_recursions, self.num_blocks, *found.shape[1:])

    def size(self, slot: str) -> int:
        """Returns the number of entries of a slot's bank."""
        return 1 + int(self.entry(slot).max())

    def users(self, slot: str) -> Int[np.ndarray, "M"]:
        """Returns the steps that use a slot's bank: all, or for keys those that make some."""
        return np.unique(self.owners) if slot.endswith(KEYS) else np.arange(self.num_steps)

    def uses(self, slot: str) -> Int[np.ndarray, "E"]:
        """Returns how many steps use each entry of a slot's bank."""
        used = self.entry(slot)[self.users(slot)]
        return np.bincount(used.reshape(-1), minlength=self.size(slot))

    def is_reused(self, slot: str) -> bool:
        """Returns whether an entry of a slot is used twice."""
        return self.size(slot) < self.entry(slot)[self.users(slot)].size

    def varies(self, slot: str) -> bool:
        """Returns whether recursions use different entries of a slot."""
        return bool((self.by_recursion(slot) != self.by_recursion(slot)[0]).any())

    def is_source(self, recursion: int) -> bool:
        """Returns whether another recursion reads keys and values that this one makes."""
        owner, reader = self.owners // self.num_blocks, np.arange(self.num_steps) // self.num_blocks
        return bool(((owner == recursion) & (reader != recursion)).any())

    def makes_keys(self, recursion: int) -> bool:
        """Returns whether some step of this recursion makes keys and values."""
        return bool((np.unique(self.owners) // self.num_blocks == recursion).any())

    def is_reader(self, recursion: int) -> bool:
        """Returns whether this recursion reads keys and values that another one made."""
        first = recursion * self.num_blocks
        owners = self.owners[first : first + self.num_blocks]
        return bool((owners // self.num_blocks != recursion).any())

    def at_depth(self, num_recursions: int) -> "Schedule":
        """Returns the schedule cut or extended to `num_recursions`; further ones repeat the last.

        Raises:
          ValueError: if a slot has no entries for that many recursions.
        """
        if num_recursions < 1:
            raise ValueError(f"depth {num_recursions}: takes at least 1")
        own = [slot for slot, _ in self.entries if self.varies(slot)]
        if num_recursions > self.num_recursions and own:
            raise ValueError(
                f"depth {num_recursions}: {', '.join(own)} has weights for "
                f"{self.num_recursions} recursions only; take at most {self.num_recursions}"
            )
        more = max(num_recursions - self.num_recursions, 0)
        cut = lambda table: (table + table[-1:] * more)[:num_recursions]
        return dataclasses.replace(
            self,
            num_recursions=num_recursions,
            entries=tuple((slot, cut(table)) for slot, table in self.entries),
            keys=self._keys_at(num_recursions),
            windows=cut(self.windows),
            shapes=cut(self.shapes),
        )

    def _keys_at(self, num_recursions: int) -> Table:
        """Returns `keys` for another number of recursions.

        Where earlier recursions read the keys of the last, that is the last one again: recursions
        are left out, or repeated, before it.
        """
        more, first = num_recursions - self.num_recursions, self.num_steps - self.num_blocks
        moved = lambda k: k + more * self.num_blocks if k >= first else k
        if any(max(row) >= first for row in self.keys[:-1]):
            *rows, last = (tuple(map(moved, row)) for row in self.keys)
            rows += [self._further(tuple(rows), i) for i in range(1, more + 1)]
            keys = (*rows[: num_recursions - 1], last)
        else:
            rows = self.keys and tuple(self._further(self.keys, i) for i in range(1, more + 1))
            keys = (self.keys + rows)[:num_recursions]
        needed = max((max(row) for row in keys), default=0) // self.num_blocks + 1
        if needed > num_recursions:
            raise ValueError(
                f"depth {num_recursions}: a recursion reads the keys of recursion {needed}, which "
                f"is not run; take at least {needed}"
            )
        return keys

    def _further(self, rows: Table, more: int) -> tuple[int, ...]:
        """Returns the row of `keys` of a recursion that comes so many after the last of `rows`.

        It reads the keys that the last reads of other recursions, and its own where the last reads
        its own.
        """
        own = range((len(rows) - 1) * self.num_blocks, len(rows) * self.num_blocks)
        return tuple(k + more * self.num_blocks if k in own else k for k in rows[-1])

    def bank(self, slot: str, tree: Any) -> Any:
        """Returns the specs of a slot's bank from those of one entry: entries in front."""
        return params.stack(tree, (self.size(slot),), (None,))
