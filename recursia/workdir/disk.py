"""A run's directory on disk: files are appended to, flushed, and renamed at once."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

from recursia.workdir.lines import Lines
from recursia.workdir.lock import Lock, is_live

__all__ = ["is_live"]
INTERVAL: float | None = None
lines = Lines
lock = Lock


def append(path: pathlib.Path, line: str, is_flushed: bool = False) -> None:
    """Adds a line to a file, on a line of its own."""
    with open(path, "ab+") as file:
        is_cut = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
        file.write(b"\n" * bool(is_cut) + line.encode())
        if is_flushed:
            file.flush()
            os.fsync(file.fileno())


def put(path: pathlib.Path, contents: bytes) -> None:
    """Replaces a file by renaming another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _renamed(path.with_name(f"{path.name}.{os.getpid()}.part"), path, contents)


def rewrite(path: pathlib.Path, contents: bytes) -> None:
    """Replaces a file by renaming another; does nothing if it is the same."""
    if contents == path.read_bytes():
        return
    _renamed(path.with_suffix(".part"), path, contents)


def _renamed(new: pathlib.Path, path: pathlib.Path, contents: bytes) -> None:
    """Writes a file and renames it, or leaves none."""
    try:
        new.write_bytes(contents)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def fill(folder: pathlib.Path, write: Callable[[str], None]) -> None:
    """Replaces a folder by renaming another."""
    new = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    write(str(new))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)


@contextlib.contextmanager
def near(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the folder itself."""
    yield folder


def partial(folder: pathlib.Path) -> str:
    """Returns "": what is begun lies beside the folder."""
    return ""


class Mirror:
    """The folder itself."""

    def __init__(self, folder: pathlib.Path):
        self.near = folder

    def send(self) -> bool:
        """Has nothing to send."""
        return False

    def close(self) -> None:
        """Keeps the folder."""


mirror = Mirror


def flush(paths: list[pathlib.Path]) -> None:
    """Flushes files and folders to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move(path: pathlib.Path, to: pathlib.Path, marker: str) -> None:
    """Renames a file or folder."""
    os.replace(path, to)


def remove(path: pathlib.Path) -> None:
    """Deletes a folder."""
    shutil.rmtree(path, ignore_errors=True)


def delete(folder: pathlib.Path, doomed: pathlib.Path, marker: str) -> None:
    """Deletes a folder after renaming it."""
    end(doomed)
    with contextlib.suppress(OSError):
        os.replace(folder, doomed)
    end(doomed)


def end(doomed: pathlib.Path) -> None:
    """Deletes a renamed folder."""
    shutil.rmtree(doomed, ignore_errors=True)
