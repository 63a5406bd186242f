"""Whether the bytes of prepared data are those that its manifest describes."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from recursia import buckets, console
from recursia.data import files
from recursia.data.files import CHUNK
from recursia.data.packing import Reader
from recursia.errors import DataError

FILE = "data_checked.json"  # in a run's directory, or with the data: the files that were whole
LONGEST = 1 << 26  # bytes of what is remembered
Stamp = tuple[int, *tuple[int | str, ...]]  # size, and what else changes with a file
File = tuple[str, Stamp, str]  # path, stamp, and the sha256 of its manifest
Known = dict[str, list[Any]]  # by path: stamp and sha256 of a file that was whole


def check(directories: tuple[str, ...], remembered: pathlib.Path, splits: Collection[str]) -> Known:
    """Compares the files of prepared folders with the digests in their manifests.

    A file that was found whole is read again only once its size, its time of modification or its
    place on the disk has changed; in a bucket, its size, or its generation or ETag.

    Args:
      directories: prepared folders.
      remembered: file that holds what was found whole; it need not exist.
      splits: whose files are compared, where a folder has them.

    Returns:
      What is known to be whole, for `remember`.

    Raises:
      DataError: with the first file that differs, or cannot be read.
    """
    known = _known(remembered)
    wanted = [file for path in directories for file in _files(path, splits)]
    found = {_real(path): [*stamp, digest] for path, stamp, digest in wanted}
    new = [file for file in wanted if known.get(real := _real(file[0])) != found[real]]
    if not new:
        return known
    with console.bar("checking data", sum(stamp[0] for _, stamp, _ in new)) as advance:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            digests = pool.map(lambda file: _digest(file[0], advance), new)
            for (path, _, wanted_digest), digest in zip(new, digests, strict=True):
                if digest != wanted_digest:
                    raise DataError(
                        f"{path}: has sha256 {digest[:12]}, its manifest.json says "
                        f"{wanted_digest[:12]}; its bytes have changed: copy it again, or prepare "
                        "again."
                    )
    return known | found


def checked(
    directories: tuple[str, ...], remembered: pathlib.Path, splits: Collection[str]
) -> None:
    """Checks files as `check` does, and remembers those that are whole where it can be written."""
    if (known := check(directories, remembered, splits)) != _known(remembered):
        remember(remembered, known)


def _files(directory: str, splits: Collection[str]) -> Iterator[File]:
    reader = Reader(directory)
    for name, entry in reader.manifest["splits"].items():
        for shard in entry["shards"] if name in splits else ():
            for ending, digest in (("tokens", "sha256"), ("documents", "documents_sha256")):
                path = os.path.join(reader.directory, f"{shard['name']}.{ending}")
                stamp = reader.stamps.get(f"{shard['name']}.{ending}") or _stamp(path)
                yield path, stamp, shard[digest]


def _real(path: str) -> str:
    return path if buckets.is_place(path) else os.path.realpath(path)


def _stamp(path: str) -> Stamp:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino


def _digest(path: str, advance: Callable[[float], None]) -> str:
    digest = hashlib.sha256()
    try:
        with files.plain(path) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                advance(len(chunk))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); copy it again.") from None
    return digest.hexdigest()


def _known(remembered: pathlib.Path) -> Known:
    try:
        if remembered.stat().st_size > LONGEST:
            return {}
        known = json.loads(remembered.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(remembered: pathlib.Path, known: Known) -> None:
    """Writes what `check` returned; if it cannot, the files are read again the next time."""
    new = remembered.with_suffix(".part")
    try:
        new.write_text(json.dumps(known))
        new.replace(remembered)
    except OSError:
        return
