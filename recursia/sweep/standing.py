"""How far a trial is, as its directory says; cheap to ask again and again."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from recursia import buckets, config, jsonfile, jsonlines, parts, storage
from recursia.errors import StorageError
from recursia.sweep import states
from recursia.sweep.directory import Sweep
from recursia.train.writer import METRICS

END = 1 << 16  # bytes of metrics.jsonl that are read
VALIDATION = "validation_loss"


@dataclasses.dataclass(frozen=True)
class Standing:
    """The state of a trial.

    Attributes:
      name: the trial's.
      state: one of `states.STATES`.
      why: of a trial that diverged or failed, in one line.
      step: the last one that its metrics have.
      num_steps: of the run; None before it has started.
      loss, validation_loss: the last ones, in nats per token; None before they are known.
    """

    name: str
    state: str
    why: str
    step: int
    num_steps: int | None
    loss: float | None
    validation_loss: float | None


def read(sweep: Sweep) -> list[Standing]:
    """Returns the standing of every trial, in the order of declaration."""
    return storage.at_once(lambda name: of(name, sweep.folder(name)), sweep.trials)


def of(name: str, folder: pathlib.Path) -> Standing:
    """Returns the standing of the trial in a directory."""
    found: dict[str, Any] = {"step": 0, "loss": None, VALIDATION: None}
    for row in rows(folder / METRICS):
        numbers = {key: jsonlines.number(row.get(key)) for key in ("loss", VALIDATION)}
        found |= {key: value for key, value in numbers.items() if value is not None}
        found["step"] = row["step"]
    return Standing(name, *states.of(folder), num_steps=_num_steps(folder), **found)


def is_number(value: Any) -> bool:
    """Returns whether a value is a number, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def rows(path: pathlib.Path) -> Iterable[dict[str, Any]]:
    """Yields the last rows of a file of metrics, whose whole lines are read alone."""
    try:
        tail = _tail(path)
    except StorageError:
        raise
    except OSError:
        return
    for line in tail.split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and jsonlines.is_step(row.get("step")):
            yield row


def _tail(path: pathlib.Path) -> bytes:
    """Returns the last lines of a file; in a bucket, those of its last parts."""
    if not buckets.is_place(path):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - END, 0))
            return file.read().partition(b"\n")[2] if size > END else file.read()
    found = b""
    for part in reversed(parts.parts(path)):
        if len(found) < END:
            found = part.read_bytes() + found
    return found


def _num_steps(folder: pathlib.Path) -> int | None:
    try:
        found = jsonfile.read(folder / config.RECORD)["train"]["num_steps"]
    except StorageError:
        raise
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if jsonlines.is_step(found) else None


def counts(standings: Iterable[Standing]) -> dict[str, int]:
    """Returns how many trials are in each state that one is in."""
    every = [each.state for each in standings]
    return {state: every.count(state) for state in states.STATES if state in every}


def in_words(counted: dict[str, int]) -> str:
    """Returns such counts as a phrase."""
    return ", ".join(f"{count} {state}" for state, count in counted.items())
