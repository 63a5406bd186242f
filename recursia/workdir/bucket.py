"""A run's directory in a bucket: objects are written whole, and copied where a disk renames.

What must not be seen half done has an object that is written last or deleted first.
"""

import contextlib
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from recursia import parts
from recursia.parts import Parts
from recursia.workdir.lease import Lease, is_live

__all__ = ["is_live"]
INTERVAL: float | None = 30.0
lines = Parts
lock = Lease
rewrite = parts.rewrite


def append(path: Any, line: str, is_flushed: bool = False) -> None:
    """Adds a line to the last part."""
    parts.append(path, line)


def put(path: Any, contents: bytes) -> None:
    """Writes an object."""
    path.write_bytes(contents)


def fill(folder: Any, write: Callable[[str], None]) -> None:
    """Writes the files of a folder over those of the same name, where they differ."""
    with tempfile.TemporaryDirectory() as near:
        write(near)
        for file in sorted(pathlib.Path(near).iterdir()):
            place, contents = folder / file.name, file.read_bytes()
            if not place.exists() or place.read_bytes() != contents:
                place.write_bytes(contents)


@contextlib.contextmanager
def near(folder: Any) -> Iterator[pathlib.Path]:
    """Yields a copy, which is deleted at the end; it does not exist if the folder does not."""
    with tempfile.TemporaryDirectory() as above:
        copy = pathlib.Path(above) / folder.name
        for each in folder.rglob("*"):
            file = copy / each.relative_to(folder).as_posix()
            file.parent.mkdir(parents=True, exist_ok=True)
            with each.open("rb") as source, file.open("wb") as target:
                while block := source.read(1 << 23):
                    target.write(block)
        yield copy


def partial(folder: Any) -> str:
    """Returns a folder in the user's cache directory, by the name of the place."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return str(cache / "recursia" / "partial" / name)


class Mirror:
    """A temporary folder; its files are written anew to the bucket once they have grown."""

    def __init__(self, folder: Any):
        self._folder, self._kept = folder, tempfile.TemporaryDirectory()
        self.near = pathlib.Path(self._kept.name)
        self._sent: dict[str, int] = {}

    def send(self) -> bool:
        """Sends the files that have grown; returns whether the newest is large."""
        last = 0
        for file in sorted(self.near.iterdir()):
            if (last := file.stat().st_size) != self._sent.get(file.name):
                (self._folder / file.name).upload(file)
                self._sent[file.name] = last
        return last >= parts.LARGE

    def close(self) -> None:
        """Deletes the temporary folder."""
        self._kept.cleanup()


mirror = Mirror


def flush(paths: list[Any]) -> None:
    """Does nothing: what a bucket has acknowledged is stored."""


def move(path: Any, to: Any, marker: str) -> None:
    """Copies objects, and then deletes them, those called `marker` first."""
    if path.is_file():
        path.replace(to)
        return
    found = list(path.rglob("*"))
    for each in found:
        each.copy(to / each.relative_to(path).as_posix())
    _delete(found, marker)


def _delete(found: list[Any], marker: str) -> None:
    for each in sorted(found, key=lambda each: each.name != marker):
        each.unlink(missing_ok=True)


def remove(path: Any) -> None:
    """Deletes the objects below a place."""
    with contextlib.suppress(OSError):
        path.rmtree()


def delete(folder: Any, doomed: Any, marker: str) -> None:
    """Deletes the objects of a folder, after writing an object that says so."""
    with contextlib.suppress(OSError):
        doomed.write_bytes(marker.encode())
        _delete(list(folder.rglob("*")), marker)
        doomed.unlink()


def end(doomed: Any) -> None:
    """Deletes the folder of which an object says that it is to be deleted."""
    delete(doomed.with_name(doomed.stem), doomed, doomed.read_text())
