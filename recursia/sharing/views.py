"""Bank entries of the steps of a scan, picked so that as little as possible is copied.

Entries that every period of a scan uses are closed over; entries that one period alone uses are
scanned over; all others are indexed, and their gradients are added to the bank's.
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
      index: the entry of each step, or its entries; a numpy array where it is known before the
        program runs.
      are_distinct: whether the entries of each step are known to differ.
    """

    bank: Any
    index: Int[np.ndarray, "N *C"] | Array
    are_distinct: bool = False

    def __getitem__(self, steps: slice) -> "View":
        """Returns the view of some of the steps."""
        return dataclasses.replace(self, index=self.index[steps])

    def entry(self) -> Any:
        """Returns the bank entry of a view of one step, or its entries along a leading axis."""
        index = self.index[0]
        index = index if np.ndim(index) or isinstance(index, Array) else int(index)
        return at(self.bank, index, are_distinct=self.are_distinct)

    def split(self, num_periods: int) -> tuple[Any, Callable[[Any], "View"]]:
        """Splits the steps over the periods of a scan.

        Args:
          num_periods: the number of periods, all with the same number of steps.

        Returns:
          The inputs of the scan, periods in front, and the function from a period's input to the
          view of its steps.
        """
        rows = self.index.reshape(num_periods, -1, *self.index.shape[1:])
        if not jax.tree.leaves(self.bank):
            return (), lambda _: View(self.bank, rows[0])
        if isinstance(rows, Array):
            return rows, lambda row: View(self.bank, row)
        if (rows == rows[0]).all():
            return (), lambda _: View(self.bank, rows[0])
        flat = rows.reshape(num_periods, -1).tolist()
        own = [list(dict.fromkeys(row)) for row in flat]
        pairs = zip(own, flat, strict=True)
        within = [[entries.index(entry) for entry in row] for entries, row in pairs]
        is_once = len(set(rows.reshape(-1))) == sum(map(len, own))
        if not is_once or any(row != within[0] for row in within):
            steps = self.index.reshape(len(self.index), -1)
            are_distinct = all(len({*step}) == len(step) for step in steps.tolist())
            return rows, lambda row: View(self.bank, row, are_distinct)
        index = np.array(within[0]).reshape(rows.shape[1:])
        return self._by_period(np.array(own)), lambda bank: View(bank, index)

    def _by_period(self, own: Int[np.ndarray, "N E"]) -> Any:
        """Returns the bank by period [N E ...], each with its own entries."""
        is_all = own.size == len(jax.tree.leaves(self.bank)[0])
        in_order = is_all and (own.reshape(-1) == np.arange(own.size)).all()
        bank = self.bank if in_order else at(self.bank, own.reshape(-1))
        return jax.tree.map(lambda leaf: leaf.reshape(*own.shape, *leaf.shape[1:]), bank)
