"""Digests of a step's files, in the format that `sha256sum --check` reads.

A step's folder holds `digests.sha256`, with a line for each file. The file that makes the step
count, written last, holds the digest of `digests.sha256`. Every bit of a step is so covered.
"""

import concurrent.futures
import errno
import hashlib
import os
import pathlib
import re

from recursia.errors import CheckpointError, UserError
from recursia.workdir import place

FILE, COMMIT = "digests.sha256", "commit_success.txt"
PENDING = f"{COMMIT}.part"  # there until `COMMIT` is: a step with neither has lost it
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
_LARGEST = 1 << 26  # bytes of `FILE` that are read
# Of a file that cannot be opened or read, what says that the file is damaged.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ELOOP)


class Damaged(CheckpointError):
    """A step whose files are not those that were saved."""


def seal(folder: pathlib.Path) -> None:
    """Flushes a step's files to disk, writes their digests, and then the file that commits it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = sorted(
        {path.relative_to(folder).as_posix() for path in files} - {FILE, COMMIT, PENDING}
    )
    lines = [f"{digest}  {name}\n" for name, digest in _digests(folder, names, is_flushed=True)]
    listed = "".join(lines)
    digest = hashlib.sha256(listed.encode()).hexdigest()
    for name, text in ((PENDING, f"{digest}  {FILE}\n"), (FILE, listed)):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    place.of(folder).flush([folder / PENDING, folder / FILE])
    (folder / PENDING).replace(folder / COMMIT)
    place.of(folder).flush([folder / COMMIT, folder])


def was_committed(folder: pathlib.Path) -> bool:
    """Returns whether a step was saved to its end, wherever the file that commits it is now."""
    return (folder / FILE).exists() and not (folder / PENDING).exists()


def check(folder: pathlib.Path, index: int = 0, count: int = 1) -> bool:
    """Compares a step's files with their digests.

    Args:
      folder: of the step.
      index: of this process.
      count: processes that check the step together, each a share of the files.

    Returns:
      Whether there are digests; older versions wrote none.

    Raises:
      Damaged: with the name of a file that differs or is missing.
      CheckpointError: if a file cannot be read for another reason.
    """
    if (names := _listed(folder)) is None:
        return False
    share = sorted(names)[index::count]
    for name, digest in _digests(folder, share):
        if digest != names[name]:
            raise Damaged(f"{folder}: {name} is not what was saved: its digest differs")
    return True


def _listed(folder: pathlib.Path) -> dict[str, str] | None:
    """Returns the digest of each file by its name, or None if an older version saved the step."""
    commit = _LINE.fullmatch(_read(folder / COMMIT).removesuffix("\n"))
    if commit is None and not (folder / FILE).exists():
        return None
    listed = _read(folder / FILE)
    digest = hashlib.sha256(listed.encode(errors="replace")).hexdigest()
    if commit is None or commit.groups() != (digest, FILE) or not listed:
        raise Damaged(f"{folder}: {FILE} or {COMMIT} is not what was saved")
    lines = [_LINE.fullmatch(line) for line in listed.removesuffix("\n").split("\n")]
    names = {line[2]: line[1] for line in lines if line}
    if len(names) < len(lines) or any(".." in name or name[0] == "/" for name in names):
        raise Damaged(f"{folder}: {FILE} has a line that names no file of the step")
    return names


def _digests(folder: pathlib.Path, names: list[str], is_flushed: bool = False):
    """Returns (name, digest) of files, computed by threads: hashing leaves the interpreter free."""

    def digest(name: str) -> tuple[str, str]:
        try:
            if not (folder / name).is_file():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if is_flushed:
                place.of(folder).flush([folder / name])
            with (folder / name).open("rb") as file:
                return name, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _refusal(folder, name, error) from None

    # While training goes on, the processor's other cores are left to it.
    with concurrent.futures.ThreadPoolExecutor(2 if is_flushed else None) as pool:
        return list(pool.map(digest, names))


def _read(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST).decode(errors="replace")
    except OSError as error:
        raise _refusal(path.parent, path.name, error) from None


def _refusal(folder: pathlib.Path, name: str, error: OSError) -> UserError:
    if isinstance(error, UserError):  # of a bucket, which says nothing of the file
        return error
    if error.errno == errno.ENOENT:
        return Damaged(f"{folder}: {name} is missing")
    kind = Damaged if error.errno in _DAMAGE else CheckpointError
    return kind(f"{folder}: {name} cannot be read ({error.strerror})")
