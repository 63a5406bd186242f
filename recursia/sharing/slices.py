"""Layer-wise widths: a step's matrices are slices of its bank entries, of a size of its own.

OpenELM (Mehta et al. 2024, arXiv 2404.14619) gives deeper layers more heads and more hidden units,
with even distances. Here each step has the first heads and the first hidden units of its entries,
and an entry is as wide as the widest step that uses it (`recursia.sharing.entries`). Where layers
share nothing these are layers of different widths, as published. Where they share, they are nested
slices of one block (Matryoshka: Kudugunta et al. 2023, arXiv 2310.07707): what a wide step learns
of its first units, a narrow one uses.

A step multiplies by its slice alone. Steps of different widths cannot be one scan: the program
grows with them.
"""

import dataclasses

import jax
import numpy as np

from recursia import ranges
from recursia.params import Params
from recursia.sharing.entries import cut
from recursia.sharing.schedule import Schedule
from recursia.sharing.weights import Part, Weights


@dataclasses.dataclass(frozen=True)
class Slices(Weights):
    """The width of each step, as fractions of the block's.

    A list holds fractions at even distances from the first step of the core to the last; steps
    between have what lies between. Two are the ends of a line, as many as steps are each step's.

    Attributes:
      heads: of the key heads of the block, rounded to whole ones, each with its query heads.
      hidden: of the hidden units of its feed-forward, rounded to `multiple`.
      multiple: hidden units of a step are a multiple of it, unless they are all.
    """

    heads: tuple[float, ...] = (0.5, 1.0)
    hidden: tuple[float, ...] = (0.125, 1.0)
    multiple: int = 1

    def __post_init__(self):
        ranges.at_least(1, self, "multiple")
        for name in ("heads", "hidden"):
            listed = getattr(self, name)
            if not listed or not all(0 < part <= 1 for part in listed):
                raise ValueError(f"{name}: got {listed}, takes fractions above 0 and at most 1")

    def parts(self, num_steps: int) -> tuple[Part, ...]:
        """Returns the part of the block that each step is, in the order of the walk."""

        def along(listed: tuple[float, ...]) -> list[float]:
            where = np.linspace(0, 1, len(listed))
            return np.interp(np.linspace(0, 1, num_steps), where, listed).tolist()

        pairs = zip(along(self.heads), along(self.hidden), strict=True)
        return tuple((heads, hidden, self.multiple) for heads, hidden in pairs)

    def moved(self, before: Schedule, after: Schedule) -> "Slices":
        """Returns the kind of a walk of other recursions, with a fraction for each step."""
        parts, last = self.parts(before.num_steps), before.num_recursions - 1
        recursion, block = np.divmod(after.steps, after.num_blocks)
        places = np.argsort(before.steps).reshape(-1, before.num_blocks)
        kept = [parts[place] for place in places[np.minimum(recursion, last), block]]
        heads, hidden, _ = zip(*kept, strict=True)
        return dataclasses.replace(self, heads=heads, hidden=hidden)

    def bind(self, entries: Params) -> Params:
        """Returns the first heads and hidden units of the entries, as many as the step has."""
        return {slot: jax.tree.map(cut, self.block[slot], tree) for slot, tree in entries.items()}
