"""What a run's checkpoints are, as rows: of the steps that count and of the folders set aside."""

import contextlib
import pathlib
import time
from typing import Any

from recursia import console
from recursia.errors import CheckpointError
from recursia.workdir import digests, place, steps
from recursia.workdir.history import FILE, History

DIRECTORY = "checkpoints"
SAVING = "being saved"
WHOLE, UNCHECKED = "match their digests", "have no digests (an older version saved them)"


def rows(workdir: pathlib.Path, step: int | None = None, reads: bool = True) -> list[dict]:
    """Returns a row for each step, in order, and for each folder that was set aside.

    Args:
      workdir: the run's directory.
      step: the only one, if not None.
      reads: whether files are compared with their digests; it takes time to read them.

    Returns:
      Rows of `folder`, `step` (None if it is set aside or being saved), `age` in seconds, `bytes`,
      `validation_loss` in nats per token, `verified` (None if that is not known), and `files`,
      which says why.

    Raises:
      CheckpointError: if there is no such directory or step.
    """
    directory = workdir / DIRECTORY
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: does not exist; is it in a run's directory?")
    history, found = History(workdir / FILE), steps.folders(directory)
    if not found and step is None:
        raise CheckpointError(f"{directory}: holds 0 checkpoints")
    if step is not None and step not in found:
        known = ", ".join(map(str, found)) or "none"
        raise CheckpointError(f"{directory}: no checkpoint of step {step}; there is {known}")
    made = []
    for each in found if step is None else (step,):
        folder = directory / str(each)
        verified, files = _state(folder, reads)
        counts = files != SAVING
        with contextlib.suppress(FileNotFoundError):  # the run has given it up meanwhile
            row = {"folder": folder.name, "step": each if counts else None, **_size(folder)}
            row["validation_loss"] = history.losses.get(each)
            made.append({**row, "verified": verified, "files": files})
    if step is not None and not any(row["step"] == step for row in made):
        raise CheckpointError(f"{directory}: step {step} is being saved, or given up, just now")
    for folder in steps.aside(directory) if step is None else ():
        row = {"folder": folder.name, "step": None, **_size(folder), "validation_loss": None}
        made.append({**row, "verified": None, "files": "set aside"})
    return made


def render(found: list[dict[str, Any]]) -> str:
    """Returns rows as a table."""
    head = ("step", "age", "size", "validation_loss", "files")
    shown = [
        (row["folder"], _age(row["age"]), _bytes(row["bytes"]), _loss(row), row["files"])
        for row in found
    ]
    widths = [max(len(line[i]) for line in (head, *shown)) for i in range(len(head))]
    lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in (head, *shown))
    return "\n".join(lines)


def _state(folder: pathlib.Path, reads: bool) -> tuple[bool | None, str]:
    """Returns whether a step is whole, and why."""
    is_finished = (folder / digests.COMMIT).exists()
    if not is_finished and place.of(folder).is_live(folder.parents[1]):
        return None, SAVING
    if not is_finished:
        return False, f"not finished: {digests.COMMIT} is missing"
    if not reads:
        return None, "not read"
    try:
        with console.doing(f"checking {folder}"):
            has_digests = steps.check(folder)
    except CheckpointError as error:
        return False, str(error).removeprefix(f"{folder}: ")
    return (True, WHOLE) if has_digests else (None, UNCHECKED)


def _size(folder: pathlib.Path) -> dict[str, float]:
    commit = folder / digests.COMMIT
    made = (commit if commit.exists() else folder).stat().st_mtime
    return {"age": round(time.time() - made, 1), "bytes": steps.size(folder)}


def _age(seconds: float) -> str:
    """Returns an age in its largest unit."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _loss(row: dict[str, Any]) -> str:
    loss = row["validation_loss"]
    return "" if loss is None else f"{loss:.4f}"
