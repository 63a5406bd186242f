"""Tables of trials: how they stand, and their results ranked by a metric."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.console
import rich.table
import rich.text

from recursia.sweep.points import BASE
from recursia.sweep.results import Result
from recursia.sweep.standing import Standing
from recursia.sweep.trial import Trial

WIDTH = 1 << 10  # columns, where no terminal says how many there are
_COLORS = {"running": "cyan", "finished": "green", "diverged": "yellow", "failed": "red"}


def standings(pairs: Sequence[tuple[Trial, Standing]]) -> rich.table.Table:
    """Returns the table of how trials stand."""
    telling = _telling([trial for trial, _ in pairs])
    table = _table("trial", "state", "step", "loss", "validation loss", *telling)
    for trial, each in pairs:
        step = f"{each.step}/{each.num_steps}" if each.num_steps else ""
        numbers = (_number(each.loss), _number(each.validation_loss))
        _add(table, each.name, each.state, step, *numbers, *_cells(trial, telling))
    return table


def reasons(standings: Iterable[Standing]) -> list[str]:
    """Returns a line for each trial that diverged or failed."""
    return [f"trial {each.name} {each.state}: {each.why}" for each in standings if each.why]


def results(ranked: Sequence[Result], metric: str) -> rich.table.Table:
    """Returns the table of results, in the order that is given."""
    telling = _telling(ranked)
    table = _table("", "trial", "state", "steps", metric, *telling)
    for rank, each in enumerate(ranked, 1):
        value = each.metrics.get(metric)
        cells = (str(rank) if value is not None else "", each.name, each.state, str(each.steps))
        _add(table, *cells, _number(value), *_cells(each, telling))
    return table


def show(table: rich.table.Table) -> None:
    """Prints a table; its cells are cut where a terminal is too narrow."""
    width = None if sys.stdout.isatty() else WIDTH
    rich.console.Console(width=width, highlight=False).print(table)


def _table(*columns: str) -> rich.table.Table:
    table = rich.table.Table(box=None, pad_edge=False)
    for name in columns:
        is_number = name in ("step", "steps") or "loss" in name
        justify = "right" if is_number else "left"
        table.add_column(rich.text.Text(name), justify=justify, no_wrap=True)
    return table


def _add(table: rich.table.Table, *cells: str) -> None:
    """Adds a row, in which rich reads no markup; states have colours."""
    table.add_row(*(rich.text.Text(cell, style=_COLORS.get(cell, "")) for cell in cells))


def _telling(trials: Sequence[Trial | Result]) -> list[str]:
    """Returns the labels, or the fields in which trials without labels differ."""
    if labels := dict.fromkeys(label for trial in trials for label in trial.labels):
        return list(labels)
    listed = [{BASE: trial.config, **trial.overrides} for trial in trials]
    fields = dict.fromkeys(field for overrides in listed for field in overrides)
    differs = lambda field: len({repr(overrides.get(field)) for overrides in listed}) > 1
    return list(filter(differs, fields))


def _cells(trial: Trial | Result, names: Iterable[str]) -> list[str]:
    values: Mapping[str, Any] = {BASE: trial.config, **trial.overrides, **trial.labels}
    return [str(values.get(name, "")) for name in names]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
