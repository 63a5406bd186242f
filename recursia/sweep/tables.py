"""Tables of trials: how they stand, and their results ranked by a metric."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from recursia.sweep.results import Result
from recursia.sweep.standing import Standing
from recursia.sweep.trial import Trial

WIDTH = 1 << 10  # columns, where no terminal says how many there are
_COLORS = {"running": "cyan", "finished": "green", "diverged": "yellow", "failed": "red"}


def standings(pairs: Sequence[tuple[Trial, Standing]]) -> rich.table.Table:
    """Returns the table of how trials stand."""
    telling = _telling([trial for trial, _ in pairs])
    table = _table("trial", "state", "step", "loss", "validation loss", *telling, "why")
    for trial, each in pairs:
        state = f"[{color}]{each.state}[/]" if (color := _COLORS.get(each.state)) else each.state
        step = f"{each.step}/{each.num_steps}" if each.num_steps else ""
        numbers = (_number(each.loss), _number(each.validation_loss))
        table.add_row(each.name, state, step, *numbers, *_cells(trial, telling), _plain(each.why))
    return table


def results(ranked: Sequence[Result], metric: str) -> rich.table.Table:
    """Returns the table of results, in the order that is given."""
    telling = _telling(ranked)
    table = _table("", "trial", "state", "steps", metric, *telling)
    for rank, each in enumerate(ranked, 1):
        value = each.metrics.get(metric)
        cells = (str(rank) if value is not None else "", each.name, each.state, str(each.steps))
        table.add_row(*cells, _number(value), *_cells(each, telling))
    return table


def show(table: rich.table.Table) -> None:
    """Prints a table; its cells are cut where a terminal is too narrow."""
    width = None if sys.stdout.isatty() else WIDTH
    rich.console.Console(width=width, highlight=False).print(table)


def _table(*columns: str) -> rich.table.Table:
    table = rich.table.Table(box=None, pad_edge=False)
    for name in columns:
        is_number = name in ("step", "steps", "loss") or "loss" in name
        table.add_column(_plain(name), justify="right" if is_number else "left", no_wrap=True)
    return table


def _telling(trials: Iterable[Trial | Result]) -> list[str]:
    """Returns the labels, and the fields in which trials differ."""
    listed = [{"base": trial.config, **trial.overrides} for trial in trials]
    fields = dict.fromkeys(field for overrides in listed for field in overrides)
    differs = lambda field: len({repr(overrides.get(field)) for overrides in listed}) > 1
    return [*_labels(trials), *filter(differs, fields)]


def _labels(trials: Iterable[Trial | Result]) -> list[str]:
    return list(dict.fromkeys(label for trial in trials for label in trial.labels))


def _cells(trial: Trial | Result, names: Iterable[str]) -> list[str]:
    values: Mapping[str, Any] = {"base": trial.config, **trial.overrides, **trial.labels}
    return [_plain(str(values.get(name, ""))) for name in names]


def _plain(text: str) -> str:
    """Returns text in which rich reads no markup."""
    return text.replace("[", r"\[")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
