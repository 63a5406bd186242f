"""The folders of steps in a run's `checkpoints/`: which of them count, and what they hold."""

import json
import pathlib
import re
from typing import Any

from recursia.errors import StorageError
from recursia.workdir import digests, place
from recursia.workdir.digests import Damaged

META = "metadata"  # the file in `meta/`
UNREADABLE, UNFINISHED = ".unreadable", ".unfinished"  # end the name of a folder set aside
DELETING = ".deleting"  # ends the name of a folder that is being deleted
_STEP = re.compile(r"0|[1-9][0-9]{0,8}")
_ASIDE = re.compile(rf"({_STEP.pattern})({re.escape(UNREADABLE)}|{re.escape(UNFINISHED)})(-\d+)?")


def folders(directory: pathlib.Path) -> list[int]:
    """Returns the steps that have a folder, finished or not, in order."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(path.name) for path in found if _STEP.fullmatch(path.name))


def finished(directory: pathlib.Path) -> list[int]:
    """Returns the steps whose save was finished, in order."""
    commits = {step: directory / str(step) / digests.COMMIT for step in folders(directory)}
    return [step for step, commit in commits.items() if commit.exists()]


def aside(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders that were set aside, by name."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in found if _ASIDE.fullmatch(path.name))


def free(path: pathlib.Path) -> pathlib.Path:
    """Returns the path, or the first of path-2, path-3, ... that does not exist."""
    count, found = 1, path
    while found.exists():
        count += 1
        found = path.with_name(f"{path.name}-{count}")
    return found


def size(folder: pathlib.Path) -> int:
    """Returns the bytes of the files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check(folder: pathlib.Path, index: int = 0, count: int = 1) -> bool:
    """Checks a share of the files of a step, and that it is the step of its folder's name.

    Args:
      folder: of the step.
      index: of this process.
      count: processes that check the step together.

    Returns:
      Whether there are digests; older versions wrote none.

    Raises:
      Damaged: if a file is not what was saved, or the folder holds another step.
      CheckpointError: if a file cannot be read for another reason.
    """
    has_digests = digests.check(folder, index, count)
    if (saved := meta(folder).get("step", int(folder.name))) != int(folder.name):
        raise Damaged(f"{folder}: holds step {saved}")
    return has_digests


def meta(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the values that were saved beside a state; raises Damaged if it cannot."""
    try:
        found = json.loads((folder / "meta" / META).read_bytes())
    except StorageError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).split("\n")[0]
        raise Damaged(f"{folder}: cannot be read ({reason})") from None
    if not isinstance(found, dict):
        raise Damaged(f"{folder}: meta/{META} is no JSON object")
    return found


def delete(folder: pathlib.Path) -> None:
    """Deletes a step; if the process is killed meanwhile, nothing takes the rest for a step."""
    doomed = folder.with_name(folder.name + DELETING)
    place.of(folder).delete(folder, doomed, digests.COMMIT)
