"""Loads batches: a pure function of the data, the seed and the step, read ahead with grain."""

import dataclasses
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grain
import jax
import numpy as np

from recursia import buckets
from recursia.data.manifest import canonical_hash
from recursia.data.packing import Reader
from recursia.data.tokenizer import Tokenizer
from recursia.data.windows import Row, Windows
from recursia.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]  # the arrays of its rows, stacked
_REQUESTS = 64  # to buckets at once
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)  # batches ahead, not rows


class Loader:
    """Shuffled, mixed, endless batches of one split.

    The rows of each directory are shuffled again in every epoch and repeated without end; several
    directories are mixed by weight. The batch of step `s` starts with row `s * batch_size` of that
    order, which does not depend on the number of processes: each process reads the rows of a batch
    that its own devices hold.

    Attributes:
      fingerprint: sha256, in hex, of all that determines the batches over all processes.
      identity: the fingerprint, and in words what it is computed from.
      vocab_size: number of ids of the tokenizer.
    """

    def __init__(
        self,
        directories: tuple[str, ...],
        weights: tuple[float, ...],
        split: str,
        seq_len: int,
        batch_size: int,
        seed: int,
        cross_document_attention: bool,
        rows: Sequence[int] | None = None,
    ):
        """Opens the directories.

        Args:
          directories: prepared folders, at least one.
          weights: share of the rows from each directory, above 0; they are normalised.
          split: "train" or "validation".
          seq_len: targets in a row.
          batch_size: rows in a batch over all processes, at least 1.
          seed: seed of the shuffling, 0 or more.
          cross_document_attention: whether a row counts as one document: segment ids all 1,
            positions 0 to T-1.
          rows: rows of each batch that this process reads, as `rows_here` returns them; None reads
            all.

        Raises:
          ConfigError: if a number is out of range, or directories and weights differ in number.
          DataError: if a directory cannot be read or their tokenizers differ.
        """
        rows = range(batch_size) if rows is None else rows
        _check(directories, weights, batch_size, seed, rows)
        windows = [Windows(path, split, seq_len) for path in directories]
        readers = [source.reader for source in windows]
        _check_tokenizers(readers)
        self._rows = _mix(windows, weights, seed)
        numbers = [
            _Numbers(path, len(each)) for path, each in zip(directories, windows, strict=True)
        ]
        self._places = _mix(numbers, weights, seed)
        self._pool = _pool(directories, len(rows))
        self._batch_size = batch_size
        self._own_rows = rows
        self._cross_document_attention = cross_document_attention
        self._reader = readers[0]
        self.vocab_size = readers[0].vocab_size
        numbers = {
            "weights": [weight / sum(weights) for weight in weights],
            "seed": seed,
            "seq_len": seq_len,
            "batch_size": batch_size,
        }
        hashes = [reader.fingerprint for reader in readers]
        self.fingerprint = canonical_hash({"directories": hashes, "split": split, **numbers})
        self.identity: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "files": [_files(reader, split) for reader in readers],
            "tokenizer": readers[0].tokenizer_name,
            **numbers,
        }

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the data, the same in all directories."""
        return self._reader.tokenizer

    def batch(self, step: int) -> Batch:
        """Returns this process's rows of a step, counted from 0: the arrays of `Windows`, [B T]."""
        numbers = [step * self._batch_size + i for i in self._own_rows]
        read = map if self._pool is None else self._pool.map
        rows = list(read(self._rows.__getitem__, numbers))
        rows = cast(list[Row], rows)  # grain gives None only where rows are filtered out
        return _stack(rows, self._cross_document_attention)

    def places(self, step: int) -> list[tuple[str, int]]:
        """Returns where all rows of a step are: the directory, and the number in its `Windows`."""
        first = step * self._batch_size
        return [cast(tuple[str, int], self._places[first + i]) for i in range(self._batch_size)]

    def iterate(self, start_step: int) -> Generator[Batch, None, None]:
        """Yields `batch(start_step)`, `batch(start_step + 1)`, ... read ahead in the background.

        Closing or deleting the generator ends the reading.
        """
        steps = grain.MapDataset.range(start_step, sys.maxsize).map(self.batch)
        batches = iter(steps.to_iter_dataset(_READ))
        try:
            yield from batches
        finally:
            batches.close()


def rows_here(where: jax.sharding.Sharding, shape: tuple[int, int]) -> tuple[int, ...]:
    """Returns the rows of a batch that this process's devices hold, in order.

    Where devices of several processes hold the same rows, each of those processes reads them.

    Args:
      where: sharding of a batch over the devices of all processes.
      shape: shape of a batch over all processes, [B T].

    Raises:
      ConfigError: if none of its devices belongs to this process.
    """
    places = where.addressable_devices_indices_map(shape).values()
    rows = {row for place in places if place is not None for row in range(shape[0])[place[0]]}
    if not rows:
        raise ConfigError(
            f"process {jax.process_index()}: has none of the {len(where.device_set)} devices that "
            f"hold the {shape[0]} rows of a batch; start fewer processes, or change the batch"
        )
    return tuple(sorted(rows))


def evaluation_batches(
    windows: Windows,
    batch_size: int,
    cross_document_attention: bool,
    limit: int | None,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yields the rows of `windows` in order, `batch_size` at a time.

    Args:
      windows: the rows; they cover every target if opened with `keep_tail=True`.
      batch_size: rows in a batch. The last batch is filled up with padding rows of weight 0.
      cross_document_attention: as for `Loader`.
      limit: most batches; None yields all.
      rows: rows of each batch that this process reads; None reads all.
    """
    stop = len(windows) if limit is None else min(len(windows), limit * batch_size)
    rows = range(batch_size) if rows is None else rows
    padding = _padding(windows[0], windows.reader.end_of_text)
    for first in range(0, stop, batch_size):
        own = [windows[first + i] if first + i < stop else padding for i in rows]
        yield _stack(own, cross_document_attention)


@dataclasses.dataclass(frozen=True)
class _Numbers:
    """In place of the rows of a directory, where they are."""

    directory: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self.directory, int(index)


def _mix(sources: Sequence[Any], weights: tuple[float, ...], seed: int) -> grain.MapDataset[Any]:
    """Returns the rows of several sources, each shuffled and repeated, mixed by weight."""
    # grain adds the epoch to the seed, so consecutive seeds would repeat each other's orders.
    seeds = np.random.SeedSequence(seed).generate_state(len(sources))
    rows = [
        grain.MapDataset.source(source).seed(int(source_seed)).shuffle().repeat(None)
        for source, source_seed in zip(sources, seeds, strict=True)
    ]
    return rows[0] if len(rows) == 1 else grain.MapDataset.mix(rows, weights=weights)


def _pool(directories: tuple[str, ...], num_rows: int) -> ThreadPoolExecutor | None:
    """Returns the threads that read rows from buckets at once, or None if all are on disk."""
    if not any(map(buckets.is_place, directories)):
        return None
    return ThreadPoolExecutor(min(_REQUESTS, num_rows), "rows")


def _stack(rows: Sequence[Row], cross_document_attention: bool) -> Batch:
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    if cross_document_attention:
        arange = np.arange(batch["tokens"].shape[1], dtype=np.int32)
        batch["segment_ids"] = np.minimum(batch["segment_ids"], 1)  # 0 for padding
        batch["positions"] = np.broadcast_to(arange, batch["positions"].shape).copy()
    return batch


def _padding(row: Row, end_of_text: int) -> Row:
    """Returns a row of padding, with the shapes of `row`."""
    zeros = {key: np.zeros_like(value) for key, value in row.items()}
    return zeros | {key: np.full_like(row[key], end_of_text) for key in ("tokens", "targets")}


def _files(reader: Reader, split: str) -> str:
    """Returns the sources of a directory in words, which do not depend on the tokenizer."""
    entry, sources = reader.split(split), reader.manifest.get("sources", ())
    names = ", ".join(source["name"] for source in sources if source["split"] == split)
    return f"{entry['documents']} documents, {entry['bytes']} bytes{names and f' of {names}'}"


def _check_tokenizers(readers: list[Reader]) -> None:
    first = readers[0]
    for reader in readers[1:]:
        if reader.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise DataError(
                f"{reader.directory}: its tokenizer is {reader.tokenizer_name}, but that of "
                f"{first.directory} is {first.tokenizer_name}; prepare one of them again with the "
                "tokenizer of the other, --tokenizer=FOLDER."
            )


def _check(
    directories: tuple[str, ...],
    weights: tuple[float, ...],
    batch_size: int,
    seed: int,
    rows: Sequence[int],
) -> None:
    if not directories or len(directories) != len(weights):
        raise ConfigError(
            f"Loader: {len(directories)} directories but {len(weights)} weights; "
            "give one weight for each of at least 1 directory."
        )
    if not all(0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"Loader: weights {weights} must be above 0; leave out what is not.")
    if batch_size < 1:
        raise ConfigError(f"Loader: batch_size {batch_size} must be at least 1; raise it.")
    if not rows or not set(rows) <= set(range(batch_size)):
        raise ConfigError(
            f"Loader: rows {tuple(rows)} are not among the {batch_size} of a batch; give some of 0 "
            f"to {batch_size - 1}."
        )
    if seed < 0:
        raise ConfigError(f"Loader: seed {seed} must be 0 or more; choose another.")
