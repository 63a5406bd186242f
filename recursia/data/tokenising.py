"""Tokenises documents into a spool, in pieces, while the next ones are read."""

import concurrent.futures
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from recursia.data.held_out import Labelled
from recursia.data.tokenizer import Tokenizer

_BATCH = 1 << 20  # characters of text tokenised at once, by all cores

Batch = list[tuple[str, str | int]]  # (split, piece), or (split, bytes of UTF-8) after a document


class Target(Protocol):
    """Takes ids; see `recursia.data.spool.Spool`."""

    def extend(self, split: str, ids: np.ndarray) -> None:
        """Appends ids to the current document."""

    def end(self, split: str, num_bytes: int) -> None:
        """Ends the current document."""


def tokenise(target: Target, tokenizer: Tokenizer, documents: Labelled) -> Iterator[int]:
    """Tokenises documents; yields the bytes of text done since the last yield.

    The library leaves Python's lock while it encodes: a thread encodes one batch while the next is
    read and cut.
    """
    with concurrent.futures.ThreadPoolExecutor(1, "encoder") as encoder:
        waiting: tuple[Batch, concurrent.futures.Future[list[np.ndarray]], int] | None = None
        for batch, num_bytes in _batches(tokenizer, documents):
            pieces = [piece for _, piece in batch if isinstance(piece, str)]
            encoding = encoder.submit(tokenizer.encode_batch, pieces)
            if waiting is not None:
                yield _write(target, *waiting)
            waiting = batch, encoding, num_bytes
        if waiting is not None:
            yield _write(target, *waiting)


def _batches(tokenizer: Tokenizer, documents: Labelled) -> Iterator[tuple[Batch, int]]:
    """Yields the pieces of documents, with the bytes of text read since the last yield."""
    batch: Batch = []
    size = total = reported = 0  # characters of the batch, bytes read, bytes yielded

    def counted(chunks: Iterator[str]) -> Iterator[str]:
        nonlocal total
        for chunk in chunks:
            total += len(chunk) if chunk.isascii() else len(chunk.encode("utf-8"))
            yield chunk

    for split, document in documents:
        start = total
        for piece in tokenizer.pieces(counted(document.chunks())):
            batch.append((split, piece))
            size += len(piece)
            if size >= _BATCH:
                yield batch, total - reported
                batch, size, reported = [], 0, total
        batch.append((split, total - start))
    if batch:
        yield batch, total - reported


def _write(
    target: Target,
    batch: Batch,
    encoding: "concurrent.futures.Future[list[np.ndarray]]",
    num_bytes: int,
) -> int:
    """Writes the ids of a batch; returns its bytes of text."""
    ids = iter(encoding.result())
    for split, piece in batch:
        if isinstance(piece, str):
            target.extend(split, next(ids))
        else:
            target.end(split, piece)
    return num_bytes
