"""Bank entries for steps that a scan takes, picked so that as little as can be is copied.

Entries that every turn of a scan uses are read where they are; entries that no two turns use are
scanned over; others are picked by number, and their gradients are added where they lie.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from recursia.params import at


@dataclasses.dataclass(frozen=True)
class View:
    """The entries of a bank that some steps use, in order.

    Attributes:
      bank: a tree of arrays or shards, entries in front.
      index: of each step; numbers where they are known before the program runs.
    """

    bank: Any
    index: Int[np.ndarray, "N"] | Array

    def __getitem__(self, steps: slice) -> "View":
        """Returns the entries of some of the steps."""
        return View(self.bank, self.index[steps])

    def entry(self) -> Any:
        """Returns the entry of a single step."""
        return at(self.bank, self.index[0] if isinstance(self.index, Array) else int(self.index[0]))

    def split(self, turns: int) -> tuple[Any, Callable[[Any], "View"]]:
        """Splits the steps over the turns of a scan.

        Args:
          turns: into which the steps fall, as many in each.

        Returns:
          What the scan runs over, and the function from a turn's part of it to the view of its
          steps.
        """
        rows = self.index.reshape(turns, -1)
        if not jax.tree.leaves(self.bank):
            return (), lambda _: View(self.bank, rows[0])
        if isinstance(rows, Array):
            return rows, lambda row: View(self.bank, row)
        if (rows == rows[0]).all():
            return (), lambda _: View(self.bank, rows[0])
        own = [list(dict.fromkeys(row)) for row in rows.tolist()]
        pairs = zip(own, rows.tolist(), strict=True)
        within = [[mine.index(entry) for entry in row] for mine, row in pairs]
        is_once = len(set(rows.reshape(-1))) == sum(map(len, own))
        if not is_once or any(row != within[0] for row in within):
            return rows, lambda row: View(self.bank, row)
        return self._in_turns(np.array(own)), lambda bank: View(bank, np.array(within[0]))

    def _in_turns(self, own: Int[np.ndarray, "N E"]) -> Any:
        """Returns the bank by turn, entries of one turn together."""
        turns, each = own.shape
        is_all = own.size == len(jax.tree.leaves(self.bank)[0])
        in_order = is_all and (own.reshape(-1) == np.arange(own.size)).all()
        bank = self.bank if in_order else at(self.bank, own.reshape(-1))
        return jax.tree.map(lambda leaf: leaf.reshape(turns, each, *leaf.shape[1:]), bank)
