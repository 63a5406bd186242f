"""The grid of steps, and which of its steps share which weights.

The core of a model is a grid of steps, `num_recursions` by `num_blocks`, between an unshared
prelude and coda. Each slot of the block (norms, attention, mlp, router, ...) says along which axes
of the grid it *varies*:

    "block"            cycle: every recursion uses the same blocks
    "recursion+block"  private: nothing is shared
    "recursion"        one copy per recursion, the same for its blocks
    "one"              one copy for the whole core
    "block/2"          groups: two neighbours on that axis share

or, where that cannot say it, gives an explicit table: for each recursion, the bank entry that each
block uses. A slot's *bank* is the block's parameters with those axes (or the entries) in front. The
walk, cycle (recursions outside) or sequence (blocks outside), is a property of the grid.

The four patterns are those of Recursive Transformers and Mixture-of-Recursions (Bae et al. 2024,
arXiv 2410.20672; 2025, arXiv 2507.10524); groups are ALBERT's (Lan et al. 2019, arXiv 1909.11942).
"""

import dataclasses
from typing import Any, Literal

from recursia import params

Axis = Literal["recursion", "block"]
Pattern = Literal["none", "cycle", "sequence", "middle_cycle", "middle_sequence"]
Table = tuple[tuple[int, ...], ...]  # [recursion][block] -> entry of the bank


@dataclasses.dataclass(frozen=True)
class Grid:
    """Steps of a model and their sharing; host data, hashable, never traced.

    Attributes:
      num_recursions: how often the core is walked.
      num_blocks: blocks of one recursion.
      prelude: unshared blocks before the core.
      coda: unshared blocks after it.
      order: "cycle" walks recursion by recursion, "sequence" block by block.
      axes: for a slot, the axes it varies along; a slot not named varies along ("block",).
      tables: for a slot that axes cannot describe, the entry of its bank at each step.
    """

    num_recursions: int
    num_blocks: int
    prelude: int = 0
    coda: int = 0
    order: Literal["cycle", "sequence"] = "cycle"
    axes: tuple[tuple[str, tuple[Axis, ...]], ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()

    @property
    def num_steps(self) -> int:
        """Applications of a block to a token that takes every recursion."""
        return self.prelude + self.num_recursions * self.num_blocks + self.coda

    def size(self, axis: Axis) -> int:
        """Returns the length of an axis."""
        return self.num_recursions if axis == "recursion" else self.num_blocks

    def axes_of(self, slot: str) -> tuple[Axis, ...]:
        """Returns the axes a slot varies along; none for a slot with a table."""
        return () if slot in dict(self.tables) else dict(self.axes).get(slot, ("block",))

    def table_of(self, slot: str) -> Table:
        """Returns the bank entry of each step, whatever way the slot was described."""
        if slot in dict(self.tables):
            return dict(self.tables)[slot]
        return axes_table(self, {axis: 1 for axis in self.axes_of(slot)})

    def stack(self, slot: str, tree: Any) -> Any:
        """Returns a slot's bank: its specs with the axes it varies along in front."""
        if slot in dict(self.tables):
            entries = 1 + max(entry for row in dict(self.tables)[slot] for entry in row)
            return params.stack(tree, (entries,), (None,))
        axes = self.axes_of(slot)
        return params.stack(tree, tuple(map(self.size, axes)), (None,) * len(axes))

    def at_depth(self, num_recursions: int) -> "Grid":
        """Returns the grid of a model that stops, or goes on, after `num_recursions`.

        Raises:
          ValueError: if a slot has no weights for that many recursions.
        """
        private = [s for s, axes in self.axes if "recursion" in axes] + [s for s, _ in self.tables]
        if num_recursions < 1:
            raise ValueError(f"depth {num_recursions}: takes at least 1")
        if num_recursions > self.num_recursions and private:
            raise ValueError(
                f"depth {num_recursions}: {', '.join(private)} has weights for "
                f"{self.num_recursions} recursions only; take at most {self.num_recursions}"
            )
        tables = tuple((slot, table[:num_recursions]) for slot, table in self.tables)
        return dataclasses.replace(self, num_recursions=num_recursions, tables=tables)


def specs(grid: Grid, block_specs: dict[str, Any], private_specs: dict[str, Any]) -> dict[str, Any]:
    """Returns the banks of prelude, core and coda, by slot; an end of no blocks has none.

    Args:
      grid: which steps share.
      block_specs: of one block.
      private_specs: what relaxed weights add to a step of the core.
    """

    def ends(count: int) -> dict[str, Any]:
        return params.stack(block_specs, (count,), (None,)) if count else {}

    slots = {**block_specs, **private_specs}
    core = {slot: grid.stack(slot, tree) for slot, tree in slots.items()}
    return {"prelude": ends(grid.prelude), "core": core, "coda": ends(grid.coda)}


def axes_table(grid: Grid, groups: dict[Axis, int]) -> Table:
    """Returns the table of a slot that varies along axes, in groups of so many neighbours."""
    wide = grid.num_blocks // groups["block"] if "block" in groups else 1
    row = lambda r: r // groups["recursion"] * wide if "recursion" in groups else 0
    column = lambda k: k // groups["block"] if "block" in groups else 0
    return tuple(
        tuple(row(r) + column(k) for k in range(grid.num_blocks))
        for r in range(grid.num_recursions)
    )


def plan(
    num_layers: int,
    num_recursions: int,
    sharing: Pattern,
    varies: tuple[tuple[str, str | Table], ...],
    slots: tuple[str, ...],
    depth_slots: tuple[str, ...],
    private_slots: tuple[str, ...] = (),
    ends: tuple[int | None, int | None] = (None, None),
) -> Grid:
    """Returns the grid of a model.

    Args:
      num_layers: effective depth, the number of block applications of a full-depth token.
      num_recursions: how often the core is walked.
      sharing: a published pattern; "none" gives every step its own weights.
      varies: per slot, where it differs from the pattern: a string or a table as above.
      slots: the block's slots.
      depth_slots: the depth policy's, which vary along recursions unless `varies` says otherwise.
      private_slots: those of relaxed weights, one for every step unless `varies` says otherwise.
      ends: unshared blocks of prelude and coda; None takes one for a "middle_" pattern, else none.

    Raises:
      ValueError: for a depth that does not divide, or a slot that cannot vary so.
    """
    default = 1 if sharing.startswith("middle_") else 0
    prelude, coda = (default if end is None else end for end in ends)
    middle = num_layers - prelude - coda
    if num_recursions < 1:
        raise ValueError(f"num_recursions: got {num_recursions}, takes at least 1")
    if middle < num_recursions or middle % num_recursions:
        below = middle // num_recursions * num_recursions
        near = [n + prelude + coda for n in (below, below + num_recursions) if n > 0]
        raise ValueError(
            f"num_layers: {num_layers} layers leave {middle} to share, which {num_recursions} "
            f"recursions do not divide; take num_layers {' or '.join(map(str, near))}"
        )
    order = "sequence" if sharing.endswith("sequence") else "cycle"
    grid = Grid(num_recursions, middle // num_recursions, prelude, coda, order)
    private = ("recursion", "block")
    axes = [(slot, private if sharing == "none" else ("block",)) for slot in slots]
    axes += [(s, ("recursion",)) for s in depth_slots] + [(s, private) for s in private_slots]
    grid = dataclasses.replace(grid, axes=tuple(axes))
    for slot, how in varies:
        if slot not in dict(axes):
            raise ValueError(f"varies: no slot {slot!r}; the slots are {', '.join(dict(axes))}")
        grid = _vary(grid, slot, how)
    return grid


def _vary(grid: Grid, slot: str, how: str | Table) -> Grid:
    """Returns the grid with one slot's sharing replaced."""
    if not isinstance(how, str):
        return _replace(grid, slot, table=_checked(grid, slot, how))
    groups: dict[Axis, int] = {}
    for part in [] if how == "one" else how.split("+"):
        axis, _, size = part.strip().partition("/")
        if axis not in ("recursion", "block") or axis in groups or not (size or "1").isdecimal():
            raise ValueError(
                f"varies.{slot}: got {how!r}, takes 'block', 'recursion', 'recursion+block', "
                "'one', groups such as 'block/2', or a table"
            )
        groups[axis] = int(size or 1)
        if groups[axis] < 1 or grid.size(axis) % groups[axis]:
            raise ValueError(
                f"varies.{slot}: groups of {groups[axis]} do not divide the {grid.size(axis)} "
                f"steps along {axis!r}"
            )
    if all(size == 1 for size in groups.values()):
        axes = tuple(axis for axis in ("recursion", "block") if axis in groups)
        return _replace(grid, slot, axes=axes)
    return _replace(grid, slot, table=axes_table(grid, groups))


def _replace(
    grid: Grid, slot: str, axes: tuple[Axis, ...] | None = None, table: Table | None = None
) -> Grid:
    others = lambda pairs: tuple((name, value) for name, value in pairs if name != slot)
    return dataclasses.replace(
        grid,
        axes=others(grid.axes) + (((slot, axes),) if axes is not None else ()),
        tables=others(grid.tables) + (((slot, table),) if table is not None else ()),
    )


def _checked(grid: Grid, slot: str, table: Any) -> Table:
    """Returns an explicit table as tuples.

    Raises:
      ValueError: if its shape is not the grid's, or its entries are not 0, 1, 2, ... all used.
    """
    rows = tuple(tuple(row) for row in table)
    if len(rows) != grid.num_recursions or {len(row) for row in rows} != {grid.num_blocks}:
        raise ValueError(
            f"varies.{slot}: the table has rows of {[len(row) for row in rows]}, the grid "
            f"{grid.num_recursions} recursions of {grid.num_blocks} blocks"
        )
    used = {entry for row in rows for entry in row}
    if used != set(range(len(used))):
        raise ValueError(
            f"varies.{slot}: entries {sorted(used)} must be 0 to {len(used) - 1}, each used"
        )
    return rows
