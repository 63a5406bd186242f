"""The step that a run resumes from: the latest whole one. Nothing else is deleted, only set aside.

Every function is called by all processes of a run, decides the same in all, and renames in the
first.
"""

import pathlib
from typing import Any

from recursia import distributed, jsonlines
from recursia.errors import CheckpointError, ConfigError
from recursia.workdir import digests, directory, place, settings_history, starts, steps
from recursia.workdir.checkpoint import Checkpoints, say
from recursia.workdir.digests import Damaged
from recursia.workdir.history import FILE, History

# What a run writes, besides `data` and the lock.
WRITTEN = (
    *("checkpoints", FILE, "metrics.jsonl", "samples.jsonl", "tensorboard", "incidents.jsonl"),
    *("config.json", "overrides.json", settings_history.FILE, directory.TOKENIZER),
    *(starts.FILE, "wandb.id"),
)


def latest(checkpoints: Checkpoints, is_restart: bool) -> int | None:
    """Returns the latest step whose files are whole, or None if the run is to begin at step 0.

    Later steps, which are damaged or unfinished, are named and set aside.

    Args:
      checkpoints: of the run, whose directory is locked.
      is_restart: whether to begin at step 0 if all steps are lost; what is there is moved aside.

    Raises:
      CheckpointError: if steps were saved, none is whole, and it is not to restart.
    """
    with distributed.together():
        if distributed.is_first():
            _tidy(checkpoints, is_restart)
    while (step := distributed.from_first(max(checkpoints.steps(), default=-1))) >= 0:
        try:
            checkpoints.check(step)
            return step
        except Damaged as error:
            _set_aside(checkpoints, step, steps.UNREADABLE, str(error))
    with distributed.together():
        if distributed.is_first() and (reason := _lost(checkpoints)):
            _begin_again(checkpoints, reason, is_restart)
    return None


def restored(checkpoints: Checkpoints, step: int, abstract: Any) -> Any | None:
    """Returns the state of a step, or None once the step is set aside because it cannot be used.

    Args:
      checkpoints: of the run.
      step: that `latest` returned.
      abstract: shapes, dtypes and shardings of the state.

    Raises:
      CheckpointError: if its parameters have other names or shapes.
    """
    try:
        state = checkpoints.restore(step, abstract)
        if (found := int(state.step)) == step:
            return state
        reason = f"{checkpoints.folder(step)}: its state is of step {found}"
    except Damaged as error:
        if not distributed.is_alone():  # the others wait for this process in the restore
            raise
        reason = str(error)
    _set_aside(checkpoints, step, steps.UNREADABLE, reason)
    return None


def _tidy(checkpoints: Checkpoints, is_restart: bool) -> None:
    """Sets unfinished saves aside, and ends deletions that were cut short."""
    if not checkpoints.steps() and (reason := _lost(checkpoints)):
        _begin_again(checkpoints, reason, is_restart)
    for path in checkpoints.directory.glob(f"*{steps.DELETING}"):
        place.of(path).end(path)
    for step in set(steps.folders(checkpoints.directory)) - set(checkpoints.steps()):
        reason = f"{checkpoints.folder(step)}: its save was not finished"
        _set_aside(checkpoints, step, steps.UNFINISHED, reason)


def _set_aside(checkpoints: Checkpoints, step: int, ending: str, reason: str) -> None:
    """Renames the folder of a step, and says so."""
    if distributed.is_first():
        to = steps.free(checkpoints.folder(step).with_name(f"{step}{ending}"))
        folder = checkpoints.folder(step)
        place.of(folder).move(folder, to, digests.COMMIT)
        say(f"{reason}; set aside as {to.name}")


def _lost(checkpoints: Checkpoints) -> str:
    """Returns what shows that steps were saved, or "" if the run never came to its first."""
    saved, directory_ = checkpoints.history.saved, checkpoints.directory
    if saved:
        count = f"{len(saved)} step" + ("s were" if len(saved) > 1 else " was")
        return f"{count} saved, the last of them {max(saved)}"
    folders = steps.folders(directory_)
    # Saves follow one another: where there are two folders, the first was finished.
    if len(folders) > 1 or any(digests.was_committed(directory_ / str(s)) for s in folders):
        return f"there are folders of {len(folders)} steps without {digests.COMMIT}"
    if broken := [path for path in steps.aside(directory_) if steps.UNREADABLE in path.name]:
        return f"there is {broken[-1].name}"
    every, last = _rows(directory_.parent)
    return f"there are metrics until step {last}" if every and last > 2 * every else ""


def _rows(workdir: pathlib.Path) -> tuple[int, int]:
    """Returns the steps between saves, and the last step of metrics.jsonl; 0 for what is lost."""
    try:
        every = directory.recorded(workdir).checkpoint.every_steps
    except ConfigError:
        every = 0
    found = (row["step"] for row in jsonlines.rows(workdir / "metrics.jsonl"))
    return every, max(found, default=0)


def _begin_again(checkpoints: Checkpoints, reason: str, is_restart: bool) -> None:
    """Moves what a run has written aside if it is to restart, or else refuses to go on."""
    workdir = checkpoints.directory.parent
    if not is_restart:
        raise CheckpointError(
            f"--workdir={workdir}: {reason}, and {checkpoints.directory.name}/ holds no whole step "
            "now; put it back as it was, or give --restart to begin at step 0 and keep the old "
            "files aside"
        )
    aside = steps.free(workdir / "aside")
    aside.mkdir()
    for name in WRITTEN:
        if (workdir / name).exists():
            place.of(workdir).move(workdir / name, aside / name, digests.COMMIT)
    checkpoints.directory.mkdir()
    checkpoints.history = History(workdir / FILE)
    say(f"{reason}, and no step is whole; beginning at step 0, with the old files in {aside}")
