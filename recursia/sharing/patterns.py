"""Sharing patterns, by which the steps of a model share weights: constructors of tables.

    "block"            cycle: every recursion uses the same blocks
    "recursion+block"  private: nothing is shared
    "recursion"        one copy per recursion, the same for its blocks
    "one"              one copy for the whole core
    "block/2"          groups: two neighbours on that axis share

or an explicit table: for each recursion, the bank entry that each block uses. The four patterns are
those of Recursive Transformers and Mixture-of-Recursions (Bae et al. 2024, arXiv 2410.20672; 2025,
arXiv 2507.10524); groups are ALBERT's (Lan et al. 2019, arXiv 1909.11942).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Int

from recursia.sharing.schedule import Entries, Order, Schedule

Pattern = Literal["none", "cycle", "sequence", "middle_cycle", "middle_sequence"]
How = str | Entries  # how a slot varies
Rule = How | Callable[[int, int], Entries]  # the same, or from numbers of recursions and blocks


def ends(sharing: Pattern, prelude: int | None, coda: int | None) -> tuple[int, int]:
    """Returns the numbers of unshared blocks before and after the core.

    Args:
      sharing: the pattern; a "middle_" pattern has 1 unshared block at each end, others have 0.
      prelude: blocks before the core; None takes the pattern's number.
      coda: blocks after the core; None takes the pattern's number.
    """
    default = 1 if sharing.startswith("middle_") else 0
    return default if prelude is None else prelude, default if coda is None else coda


def schedule(
    num_layers: int,
    groups: tuple[int, ...],
    sharing: Pattern,
    ends: tuple[int, int],
    slots: dict[str, Rule],
    varies: dict[str, How],
) -> Schedule:
    """Returns the schedule of a model's core.

    Args:
      num_layers: effective depth, the number of block applications of a full-depth token.
      groups: for each recursion of the core, its group of blocks; groups share no weights.
      sharing: a published pattern; "none" gives every step its own weights.
      ends: numbers of unshared blocks before and after the core.
      slots: for every slot, how it varies by default.
      varies: for some slots, how they vary instead.

    Raises:
      ValueError: for a depth that does not divide, or a slot that cannot vary in that way.
    """
    middle, num_recursions = num_layers - sum(ends), len(groups)
    if middle < num_recursions or middle % num_recursions:
        below = middle // num_recursions * num_recursions
        near = [n + sum(ends) for n in (below, below + num_recursions) if n > 0]
        raise ValueError(
            f"num_layers: {num_layers} layers leave {middle} to share, which {num_recursions} "
            f"recursions do not divide; take num_layers {' or '.join(map(str, near))}"
        )
    for slot in varies:
        if slot not in slots:
            raise ValueError(f"varies: no slot {slot!r}; the slots are {', '.join(slots)}")
    order: Order = "sequence" if sharing.endswith("sequence") else "cycle"
    sizes = num_recursions, middle // num_recursions
    tables = {slot: table(*sizes, slot, how) for slot, how in slots.items()}
    for slot, how in varies.items():
        tables[slot] = _with_cells(slot, table(*sizes, slot, how), tables[slot])
    for slot, how in {**slots, **varies}.items():
        if isinstance(how, str) and "recursion" not in how:
            tables[slot] = _apart(tables[slot], groups)
    return Schedule(*sizes, order, tuple(tables.items()))


def _with_cells(slot: str, given: Entries, default: Entries) -> Entries:
    """Returns a table with as many entries in a cell as a slot's default has.

    Where the default has several, a number stands for so many neighbouring entries.

    Raises:
      ValueError: if the cells have another number of entries.
    """
    count, found = np.shape(default)[2:], np.array(given)
    if count and found.ndim == 2:
        return as_table(found[..., None] * count[0] + np.arange(count[0]))
    if count != found.shape[2:]:
        raise ValueError(
            f"varies.{slot}: cells of the table have {(*found.shape[2:], 1)[0]} entries, a step "
            f"takes {(*count, 1)[0]}"
        )
    return given


def _apart(table: Entries, groups: tuple[int, ...]) -> Entries:
    """Returns a table in which each group of recursions has its own entries."""
    found = np.array(table)
    first = (1 + found.max()) * np.array(groups)
    return as_table(found + first.reshape(-1, *(1,) * (found.ndim - 1)))


def as_table(found: Int[np.ndarray, "R K *C"]) -> Entries:
    """Returns a table of entries, one or several in each cell, as tuples."""
    cell = lambda entries: tuple(entries) if isinstance(entries, list) else entries
    return tuple(tuple(map(cell, row)) for row in found.tolist())


def table(num_recursions: int, num_blocks: int, slot: str, how: Rule) -> Entries:
    """Returns the table of a slot: the bank entry that each step uses.

    Raises:
      ValueError: for a pattern that does not exist, or a table of another shape.
    """
    if callable(how):
        return how(num_recursions, num_blocks)
    if not isinstance(how, str):
        return _checked(num_recursions, num_blocks, slot, how)
    sizes, groups = {"recursion": num_recursions, "block": num_blocks}, {}
    for varying in [] if how == "one" else how.split("+"):
        axis, _, size = varying.strip().partition("/")
        if axis not in sizes or axis in groups or not (size or "1").isdecimal():
            raise ValueError(
                f"varies.{slot}: got {how!r}, takes 'block', 'recursion', 'recursion+block', "
                "'one', groups such as 'block/2', or a table"
            )
        groups[axis] = int(size or 1)
        if groups[axis] < 1 or sizes[axis] % groups[axis]:
            raise ValueError(
                f"varies.{slot}: groups of {groups[axis]} do not divide the {sizes[axis]} "
                f"steps along {axis!r}"
            )
    wide = num_blocks // groups["block"] if "block" in groups else 1
    row = lambda r: r // groups["recursion"] * wide if "recursion" in groups else 0
    column = lambda k: k // groups["block"] if "block" in groups else 0
    return tuple(
        tuple(row(r) + column(k) for k in range(num_blocks)) for r in range(num_recursions)
    )


def _checked(num_recursions: int, num_blocks: int, slot: str, given: Entries) -> Entries:
    """Returns an explicit table as tuples.

    Raises:
      ValueError: if its shape is not the model's, or its entries are not 0, 1, 2, ... all used.
    """
    rows = tuple(tuple(row) for row in given)
    if len(rows) != num_recursions or {len(row) for row in rows} != {num_blocks}:
        raise ValueError(
            f"varies.{slot}: the table has rows of {[len(row) for row in rows]}, the model "
            f"{num_recursions} recursions of {num_blocks} blocks"
        )
    if len(lengths := {np.size(cell) for row in rows for cell in row}) > 1:
        raise ValueError(f"varies.{slot}: cells have {sorted(lengths)} entries; give all as many")
    used = set(np.ravel(rows).tolist())
    if used != set(range(len(used))):
        raise ValueError(
            f"varies.{slot}: entries {sorted(used)} must be 0 to {len(used) - 1}, each used"
        )
    return rows
