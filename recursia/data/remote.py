"""Bytes of objects in buckets, read in blocks that are kept up to a limit.

Tensorstore tries a failed request again, up to `storage.TRIES` times; a read that takes longer than
`storage.SECONDS` in all has failed.
"""

import collections
import concurrent.futures
import functools
import pathlib
import threading
from collections.abc import Callable
from typing import Any

from recursia import buckets, objects, storage

BLOCK = 1 << 16  # bytes read at once: a row of 2048 ids has 4096 or 8192
CACHE_BYTES = 1 << 28  # of the blocks that are kept for one prepared folder

Advance = Callable[[float], None]


class Cache:
    """The blocks that were read last, of all objects of a folder."""

    def __init__(self, most: int = CACHE_BYTES):
        """Makes an empty cache of at most so many bytes."""
        self._most, self._size = most, 0
        self._blocks: collections.OrderedDict[tuple[str, int], bytes] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str, number: int) -> bytes | None:
        """Returns a block of an object, or None if it is not kept."""
        with self._lock:
            if (block := self._blocks.get((path, number))) is not None:
                self._blocks.move_to_end((path, number))
            return block

    def put(self, path: str, number: int, block: bytes) -> None:
        """Keeps a block; the ones that were not asked for the longest go."""
        with self._lock:
            if (path, number) not in self._blocks:
                self._size += len(block)
            self._blocks[path, number] = block
            while self._size > self._most:
                _, gone = self._blocks.popitem(last=False)
                self._size -= len(gone)


class Object:
    """An object that does not change while it is read."""

    def __init__(self, path: str, size: int, cache: Cache):
        """Names the object; nothing is read yet.

        Args:
          path: gs:// or s3://, bucket and name.
          size: its bytes.
          cache: of its folder.
        """
        self._path, self._size, self._cache = path, size, cache
        self._generation: Any = None  # when it was first read

    @functools.cached_property
    def _store(self) -> Any:
        import tensorstore  # 0.3 s, which data on disk need not spend

        opened = tensorstore.KvStore.open(storage.kvstore(self._path))
        return opened.result(timeout=storage.SECONDS)

    def read(self, start: int, size: int) -> bytes:
        """Returns `size` bytes from `start` on.

        Raises:
          OSError: if they cannot be read, or the object has changed; `strerror` says why.
        """
        first, last = start // BLOCK, -(-(start + size) // BLOCK)
        blocks = {number: self._cache.get(self._path, number) for number in range(first, last)}
        missing = [number for number, block in blocks.items() if block is None]
        if missing:  # one request, also where a block between is kept
            low = missing[0]
            raw = self._ask(low * BLOCK, min((missing[-1] + 1) * BLOCK, self._size))
            for number in missing:
                place = (number - low) * BLOCK
                blocks[number] = block = raw[place : place + BLOCK]
                self._cache.put(self._path, number, block)
        whole = b"".join(block for block in blocks.values() if block is not None)
        return whole[start - first * BLOCK :][:size]

    def _ask(self, start: int, stop: int) -> bytes:
        try:
            found = self._store.read("", byte_range=slice(start, stop))
            found = found.result(timeout=storage.SECONDS)
        except Exception as error:  # tensorstore's are of several classes
            reason = objects.reason(_scheme(self._path), error)
            raise storage.Unreachable(self._path, reason) from None
        if found.state != "value":
            raise storage.Unreachable(self._path, "it is gone")
        generation = found.stamp.generation
        self._generation = self._generation or generation
        if generation != self._generation:
            raise storage.Unreachable(self._path, "it has changed since the run began")
        return found.value


def stamps(folder: str) -> dict[str, tuple[int, str]]:
    """Returns, for each object directly in a folder, its bytes and what changes with it.

    Raises:
      OSError: if the bucket cannot be read.
    """
    entries = objects.ask(_scheme(folder), folder, "ls", folder, detail=True)
    return {
        entry["name"].rpartition("/")[2]: _stamp(entry)
        for entry in entries
        if entry["type"] == "file"
    }


def stamp(path: str) -> tuple[int, str]:
    """Returns the bytes of an object, and what changes with it; raises OSError as `stamps` does."""
    return _stamp(objects.ask(_scheme(path), path, "info", path))


def _stamp(entry: dict[str, Any]) -> tuple[int, str]:
    return int(entry["size"]), str(entry.get("generation") or entry.get("ETag") or "")


def _scheme(path: str) -> str:
    return path.partition("://")[0]


def upload(folder: str, place: str, last: str, num_threads: int, advance: Advance) -> None:
    """Writes the files of a folder into a bucket, the one named `last` at the end.

    Args:
      folder: on disk.
      place: in a bucket.
      last: name of a file, which must not be in the bucket yet: with it the others count.
      num_threads: files written at once.
      advance: is called with the bytes written since its last call.

    Raises:
      OSError: if one cannot be written.
    """
    target, files = buckets.path(place), sorted(pathlib.Path(folder).iterdir())

    def write(file: pathlib.Path) -> None:
        (target / file.name).upload(file)
        advance(file.stat().st_size)

    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(write, [file for file in files if file.name != last]):
            pass
    (target / last).write_bytes((pathlib.Path(folder) / last).read_bytes(), is_new=True)
