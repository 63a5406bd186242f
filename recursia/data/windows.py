"""Cuts a split into rows of a fixed length, with segment ids, positions and weights."""

import numpy as np

from recursia.data.packing import Reader
from recursia.errors import ConfigError, DataError

Row = dict[str, np.ndarray]
_INTEGERS = ("tokens", "targets", "segment_ids", "positions")


class Windows:
    """Rows of `seq_len` targets, cut one after the other from a split; indexed by their number.

    A row is a dict of arrays [T]:

      tokens: int32 ids that the model reads.
      targets: int32, the ids one place later.
      segment_ids: int32, the document in the row that a token belongs to, from 1; 0 for padding.
      positions: int32, from 0 at the start of the row and of each document.
      weights: float32, 1 for a target and 0 for padding, whose ids are the end of text.

    An end of text belongs to the document that it ends. Every token of the split except the first
    is a target exactly once.
    """

    def __init__(self, directory: str, split: str, seq_len: int, *, keep_tail: bool = False):
        """Opens a split.

        Args:
          directory: a prepared folder.
          split: "train" or "validation".
          seq_len: targets in a row, at least 1.
          keep_tail: whether the last targets, if fewer than `seq_len`, make a padded row (for
            evaluation) or are dropped (for training).

        Raises:
          ConfigError: if `seq_len` is below 1.
          DataError: if the data is missing or damaged, or has too few tokens for one row.
        """
        if seq_len < 1:
            raise ConfigError(f"seq_len is {seq_len} but must be at least 1 token; raise it.")
        self.reader = Reader(directory)
        self.seq_len = seq_len
        self._tokens, self._documents = self.reader.tokens(split), self.reader.documents(split)
        self._bounds = np.cumsum([0] + [len(shard) for shard in self._tokens])
        total, needed = int(self._bounds[-1]), 2 if keep_tail else seq_len + 1
        if total < needed:
            raise DataError(
                f"{directory}: {split} has {total} tokens but one row of seq_len {seq_len} needs "
                f"{needed}; lower seq_len or prepare more text."
            )
        self._targets = total - 1
        self._len = -(-self._targets // seq_len) if keep_tail else self._targets // seq_len

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._len:
            raise IndexError(f"Windows: row {index} is not among the {self._len}.")
        start, length = int(index) * self.seq_len, self.seq_len
        count = min(length, self._targets - start)
        tokens, starts = self._read(start, start + count + 1)
        arange = np.arange(length, dtype=np.int32)
        is_first = np.zeros(length, np.int32)
        is_first[starts[(starts > 0) & (starts < count)]] = 1
        document_start = np.maximum.accumulate(arange * is_first)
        is_target = arange < count
        end = self.reader.end_of_text
        missing = length - count
        pad = lambda ids: np.pad(ids, (0, missing), constant_values=end) if missing else ids
        return {
            "tokens": pad(tokens[:-1]),
            "targets": pad(tokens[1:]),
            "segment_ids": np.where(is_target, 1 + np.cumsum(is_first, dtype=np.int32), 0),
            "positions": np.where(is_target, arange - document_start, 0),
            "weights": is_target.astype(np.float32),
        }

    def _read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens [start, stop), and the places among them at which documents start."""
        first = int(np.searchsorted(self._bounds, start, side="right")) - 1
        last = int(np.searchsorted(self._bounds, stop, side="left"))
        tokens, starts = [], []
        for shard in range(first, last):
            base = int(self._bounds[shard])
            low, high = max(start - base, 0), min(stop - base, len(self._tokens[shard]))
            ids, places = self._tokens[shard][low:high], self._documents[shard].between(low, high)
            self._check(shard, ids, places)
            tokens.append(ids.astype(np.int32))
            starts.append(places + (base - start))
        return np.concatenate(tokens), np.concatenate(starts)

    def _check(self, shard: int, ids: np.ndarray, places: np.ndarray) -> None:
        """Refuses an id that the tokenizer lacks, and documents that do not follow each other."""
        if (largest := int(ids.max())) >= (size := self.reader.vocab_size):
            path, wrong = self._tokens[shard].path, f"id {largest}, and its tokenizer has {size}"
        elif (places[1:] <= places[:-1]).any():
            path, wrong = self._documents[shard].path, "documents that start in no order"
        else:
            return
        raise DataError(f"{path}: holds {wrong}; copy it again, or prepare again.")


def padding(num_rows: int, seq_len: int) -> Row:
    """Returns rows of padding of the arrays of `Windows`, each [B T]."""
    shape = (num_rows, seq_len)
    integers = {name: np.zeros(shape, np.int32) for name in _INTEGERS}
    return integers | {"weights": np.zeros(shape, np.float32)}
