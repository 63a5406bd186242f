"""Deals the tokens of spools into shards, which do not depend on how many spools there are."""

import concurrent.futures
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from recursia.data import spool
from recursia.data.files import CHUNK
from recursia.data.manifest import SPLITS, ShardEntry, SplitEntry

OFFSET = np.dtype("<i8")

Folder = str | os.PathLike[str]
Advance = Callable[[float], None]  # is called with the bytes written since its last call


class Run(NamedTuple):
    """Documents of a spool that follow each other: their numbers, and the place of their tokens."""

    folder: Folder
    first: int
    last: int  # not included
    start: int  # in tokens
    stop: int  # not included


def join(
    spools: Sequence[Folder],
    folder: Folder,
    dtype: np.dtype,
    shard_tokens: int,
    *,
    num_threads: int,
    advance: Advance,
) -> dict[str, SplitEntry]:
    """Writes the shards of every split that has documents; returns the manifest's entries.

    A shard takes the next document until that would give it more than `shard_tokens`, so that only
    one long document is longer.

    Args:
      spools: folders of spools, in the order of their documents.
      folder: where to write; it exists.
      dtype: of the ids.
      shard_tokens: most tokens in a shard, unless a single document is longer.
      num_threads: shards written at once.
      advance: see `Advance`.
    """
    splits: dict[str, SplitEntry] = {}
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        for split in SPLITS:
            write = lambda number, runs, split=split: _write(
                number, runs, folder, split, dtype, advance
            )
            dealt = _deal(spools, split, shard_tokens)
            if entries := list(pool.map(write, itertools.count(), dealt)):
                splits[split] = _totals(entries)
    return splits


def _deal(spools: Sequence[Folder], split: str, most: int) -> Iterator[list[Run]]:
    """Yields the runs of documents of each shard."""
    runs: list[Run] = []
    used = 0  # tokens of the shard
    for folder in spools:
        ends = np.cumsum(spool.counts(folder, split)[:, 0])
        first = start = 0
        while first < len(ends):
            last = max(int(ends.searchsorted(start + most - used, side="right")), first)
            if last == first and not used:
                last += 1  # a document that is longer than a shard
            if last > first:
                stop = int(ends[last - 1])
                runs.append(Run(folder, first, last, start, stop))
                first, start, used = last, stop, used + stop - start
            if first < len(ends):
                yield runs
                runs, used = [], 0
    if runs:
        yield runs


def _write(
    number: int, runs: list[Run], folder: Folder, split: str, dtype: np.dtype, advance: Advance
) -> ShardEntry:
    """Writes the two files of a shard."""
    name = f"{split}-{number:05d}"
    digests = {ending: hashlib.sha256() for ending in ("tokens", "documents")}
    tokens = documents = num_bytes = 0
    stem = pathlib.Path(folder) / name
    with open(f"{stem}.tokens", "wb") as ids, open(f"{stem}.documents", "wb") as places:
        for run in runs:
            for raw in _chunks(run, split, dtype.itemsize):
                ids.write(raw)
                digests["tokens"].update(raw)
                advance(len(raw))
            counts = spool.counts(run.folder, split)[run.first : run.last]
            starts = (tokens + np.cumsum(counts[:, 0]) - counts[:, 0]).astype(OFFSET).tobytes()
            places.write(starts)
            digests["documents"].update(starts)
            tokens += run.stop - run.start
            documents += len(counts)
            num_bytes += int(counts[:, 1].sum())
        for file in (ids, places):
            file.flush()
            os.fsync(file.fileno())
    return {
        "name": name,
        "tokens": tokens,
        "documents": documents,
        "bytes": num_bytes,
        "sha256": digests["tokens"].hexdigest(),
        "documents_sha256": digests["documents"].hexdigest(),
    }


def _chunks(run: Run, split: str, size: int) -> Iterator[bytes]:
    """Yields the bytes of a run's tokens, of `size` bytes each."""
    with open(pathlib.Path(run.folder) / f"{split}.tokens", "rb", buffering=0) as file:
        file.seek(run.start * size)
        left = (run.stop - run.start) * size
        while left:
            raw = file.read(min(CHUNK, left))
            if not raw:
                raise OSError(f"{file.name} ends {left} bytes before its documents do")
            left -= len(raw)
            yield raw


def _totals(shards: list[ShardEntry]) -> SplitEntry:
    return {
        "tokens": sum(shard["tokens"] for shard in shards),
        "documents": sum(shard["documents"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
    }
