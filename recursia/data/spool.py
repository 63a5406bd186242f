"""Tokens in the order of their documents, before they are dealt into shards.

A spool is a folder with two files for each split: `SPLIT.tokens` (ids; every document is followed
by the end of text) and `SPLIT.documents` (int64 [documents 2]: the tokens of each document with its
end of text, and its bytes of UTF-8).
"""

import os
import pathlib
import struct
from collections.abc import Sequence
from typing import IO

import numpy as np

from recursia.data.manifest import SPLITS

_COUNTS = struct.Struct("<2q")
FILES = tuple(f"{split}.{ending}" for split in SPLITS for ending in ("tokens", "documents"))
COUNTS = np.dtype(("<i8", (2,)))  # tokens and bytes of a document


class Spool:
    """Writes a spool; a context manager that closes its files."""

    def __init__(self, folder: str | os.PathLike[str], dtype: np.dtype, end_of_text: int):
        """Opens the files of every split.

        Args:
          folder: an existing folder.
          dtype: of the ids.
          end_of_text: id that is written after each document.
        """
        name = lambda split, ending: os.path.join(folder, f"{split}.{ending}")
        self._tokens = {split: open(name(split, "tokens"), "wb") for split in SPLITS}
        self._documents = {split: open(name(split, "documents"), "wb") for split in SPLITS}
        self._dtype, self._end = dtype, np.array(end_of_text, dtype).tobytes()
        self._count = 0  # tokens of the current document

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *exception: object) -> None:
        files: list[IO[bytes]] = [*self._tokens.values(), *self._documents.values()]
        for file in files:
            file.close()

    def extend(self, split: str, ids: Sequence[int] | np.ndarray) -> None:
        """Appends ids to the current document, which `end` ends."""
        self._tokens[split].write(np.asarray(ids, self._dtype).tobytes())
        self._count += len(ids)

    def end(self, split: str, num_bytes: int) -> None:
        """Ends the current document, which had `num_bytes` of UTF-8."""
        self._tokens[split].write(self._end)
        self._documents[split].write(_COUNTS.pack(self._count + 1, num_bytes))
        self._count = 0

    def sync(self) -> None:
        """Writes everything to disk."""
        for file in (*self._tokens.values(), *self._documents.values()):
            file.flush()
            os.fsync(file.fileno())


def counts(folder: str | os.PathLike[str], split: str) -> np.ndarray:
    """Returns int64 [documents 2]: the tokens and bytes of each document of a split."""
    return np.fromfile(pathlib.Path(folder) / f"{split}.documents", COUNTS)


def count(folder: str | os.PathLike[str], split: str) -> int:
    """Returns the number of documents of a split."""
    return (pathlib.Path(folder) / f"{split}.documents").stat().st_size // COUNTS.itemsize
