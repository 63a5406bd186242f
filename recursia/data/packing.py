"""Prepared data on disk: shards of token ids with the boundaries of documents.

A folder holds `manifest.json`, the tokenizer, and for each shard two files: `SPLIT-00000.tokens`
(little-endian ids; every document is followed by the end of text) and `SPLIT-00000.documents`
(int64: the place in the shard at which each document starts). The folder appears under its name
only when it is complete.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Sequence
from typing import IO, Literal

import numpy as np

from recursia.data import manifest as manifests
from recursia.data import tokenizer as tokenizer_lib
from recursia.data.column import Column
from recursia.data.manifest import SPLITS, Manifest, Record, ShardEntry, SplitEntry
from recursia.data.vocabulary import named
from recursia.errors import DataError

_OFFSET = np.dtype("<i8")
_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class Writer:
    """Writes a prepared folder; a context manager that leaves nothing behind on an error.

    All files go to a sibling `OUTPUT.partial-...`, which `finish` renames to the output. If the
    process is killed, that sibling remains; nothing reads it, and it may be removed.
    """

    def __init__(self, output: str, tokenizer: tokenizer_lib.Tokenizer, shard_tokens: int):
        """Creates the sibling folder.

        Args:
          output: the folder to make; it must be absent or empty when `finish` is called.
          tokenizer: the tokenizer of the ids; it is saved beside them.
          shard_tokens: most tokens in a shard, unless a single document is longer.
        """
        self._output = output
        self._folder = f"{os.path.abspath(output)}.partial-{uuid.uuid4().hex[:8]}"
        self._tokenizer = tokenizer
        self._shard_tokens = shard_tokens
        self._dtype = _DTYPES["uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"]
        self._open: dict[str, _Shard] = {}
        self._closed: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
        self._pending: list[np.ndarray] = []  # ids of the current document, not yet in a shard
        self._pending_tokens = 0
        self._is_begun = False  # whether a shard holds ids of the current document
        parents = pathlib.Path(self._folder).parents
        self._new_parents = [folder for folder in parents if not folder.exists()]  # nearest first
        os.makedirs(self._folder)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        for shard in self._open.values():  # none after `finish`
            with contextlib.suppress(OSError):  # a full disk; the folder is removed anyway
                shard.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        for folder in self._new_parents:  # one that holds the output is not empty, and stays
            with contextlib.suppress(OSError):
                folder.rmdir()

    def add(self, split: str, ids: Sequence[int], num_bytes: int) -> None:
        """Appends a document of `num_bytes` of UTF-8; the end of text is appended to its ids."""
        self.extend(split, ids)
        self.end(split, num_bytes)

    def extend(self, split: str, ids: Sequence[int] | np.ndarray) -> None:
        """Appends ids to the current document, which `end` ends."""
        self._pending.append(np.asarray(ids, self._dtype))
        self._pending_tokens += len(ids)
        shard = self._open.get(split)
        # While the document still fits into the open shard, it waits: it may grow too long for it.
        if self._is_begun or shard is None or not self._fits(shard):
            self._flush(split)

    def end(self, split: str, num_bytes: int) -> None:
        """Ends the current document, which had `num_bytes` of UTF-8."""
        self.extend(split, [self._tokenizer.end_of_text])
        self._flush(split)
        self._open[split].bytes += num_bytes
        self._is_begun = False

    def _fits(self, shard: "_Shard") -> bool:
        return shard.tokens + self._pending_tokens <= self._shard_tokens

    def _flush(self, split: str) -> None:
        """Writes the pending ids; a document that does not fit into the open shard starts a new."""
        shard = self._open.get(split)
        if shard is not None and not self._is_begun and not self._fits(shard):
            self._closed[split].append(self._open.pop(split).close())
            shard = None
        if shard is None:
            name = f"{split}-{len(self._closed[split]):05d}"
            shard = self._open[split] = _Shard(os.path.join(self._folder, name))
        if not self._is_begun:
            shard.begin()
        self._is_begun = True
        for tokens in self._pending:
            shard.add(tokens)
        self._pending.clear()
        self._pending_tokens = 0

    def finish(self, record: Record) -> Manifest:
        """Completes the folder and returns its manifest, which includes `record` unchanged."""
        for split in tuple(self._open):
            self._closed[split].append(self._open.pop(split).close())
        tokenizer = self._tokenizer
        manifest: Manifest = {
            "format_version": manifests.FORMAT_VERSION,
            "tokenizer": {
                "kind": tokenizer.kind,
                "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
                "end_of_text": tokenizer.end_of_text,
            },
            "dtype": self._dtype.name,
            "splits": {split: _totals(shards) for split, shards in self._closed.items() if shards},
            "fingerprint": "",
        }
        manifest["fingerprint"] = manifests.fingerprint(manifest)
        manifest = {**manifest, **record}
        tokenizer.save(self._folder)
        with open(os.path.join(self._folder, "manifest.json"), "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=2, ensure_ascii=False)
            _sync(file)
        os.rename(self._folder, self._output)
        return manifest


def _totals(shards: list[ShardEntry]) -> SplitEntry:
    return {
        "tokens": sum(shard["tokens"] for shard in shards),
        "documents": sum(shard["documents"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
    }


class _Shard:
    """One shard being written: its two files, their digests and counts."""

    def __init__(self, stem: str):
        self._files = {ending: open(f"{stem}.{ending}", "wb") for ending in ("tokens", "documents")}
        self._digests = {ending: hashlib.sha256() for ending in self._files}
        self._name = os.path.basename(stem)
        self.tokens = self.bytes = self._documents = 0

    def begin(self) -> None:
        self._write("documents", np.array(self.tokens, _OFFSET).tobytes())
        self._documents += 1

    def add(self, tokens: np.ndarray) -> None:
        self._write("tokens", tokens.tobytes())
        self.tokens += len(tokens)

    def _write(self, ending: str, raw: bytes) -> None:
        self._files[ending].write(raw)
        self._digests[ending].update(raw)

    def close(self) -> ShardEntry:
        for file in self._files.values():
            _sync(file)
            file.close()
        return {
            "name": self._name,
            "tokens": self.tokens,
            "documents": self._documents,
            "bytes": self.bytes,
            "sha256": self._digests["tokens"].hexdigest(),
            "documents_sha256": self._digests["documents"].hexdigest(),
        }


def _sync(file: IO[str] | IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


class Reader:
    """A prepared folder whose files have the sizes that its manifest says.

    Attributes:
      directory: the folder.
      manifest: the contents of `manifest.json`.
      fingerprint: hash of the tokenizer and of all tokens.
      tokenizer_fingerprint: `Tokenizer.fingerprint` of the tokenizer.
      vocab_size: `Tokenizer.vocab_size` of the tokenizer.
      end_of_text: `Tokenizer.end_of_text` of the tokenizer.
    """

    def __init__(self, directory: str):
        """Reads the manifest.

        Raises:
          DataError: if the folder or the manifest is missing or damaged, if its format is another,
            or if a file has another size.
        """
        self.directory = directory = os.path.expanduser(directory)
        self.manifest = manifests.read(directory)
        self._dtype = _DTYPES[self.manifest["dtype"]]
        for entry in self.manifest["splits"].values():
            for shard in entry["shards"]:
                self._check(shard["name"] + ".tokens", shard["tokens"] * self._dtype.itemsize)
                self._check(shard["name"] + ".documents", shard["documents"] * _OFFSET.itemsize)
        self.fingerprint: str = self.manifest["fingerprint"]
        self.tokenizer_fingerprint: str = self.manifest["tokenizer"]["fingerprint"]
        self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]
        self.end_of_text: int = self.manifest["tokenizer"]["end_of_text"]

    def _check(self, name: str, expected: int) -> None:
        path = os.path.join(self.directory, name)
        if not os.path.isfile(path):
            raise DataError(
                f"{path}: missing, 0 of {expected} bytes; remove the folder and prepare again."
            )
        if (size := os.path.getsize(path)) != expected:
            raise DataError(
                f"{path}: has {size} bytes but its manifest says {expected}; "
                "copy it again, or remove the folder and prepare again."
            )

    @functools.cached_property
    def tokenizer(self) -> tokenizer_lib.Tokenizer:
        """The tokenizer the data was prepared with; raises DataError if it is another."""
        tokenizer, entry = tokenizer_lib.load(self.directory), self.manifest["tokenizer"]
        for name in ("kind", "fingerprint", "vocab_size", "end_of_text"):
            if (here := getattr(tokenizer, name)) != entry[name]:
                raise DataError(
                    f"{self.directory}: its tokenizer has {name} {here!r:.20}, its manifest.json "
                    f"{entry[name]!r:.20}; remove the folder and prepare again."
                )
        return tokenizer

    @property
    def tokenizer_name(self) -> str:
        """The `Tokenizer.name` of the tokenizer."""
        kind = self.manifest["tokenizer"]["kind"]
        return named(kind, self.vocab_size, self.tokenizer_fingerprint)

    def split(self, name: str) -> SplitEntry:
        """Returns the manifest's entry of a split.

        Raises:
          DataError: if there is no such split.
        """
        splits = self.manifest["splits"]
        if name not in splits:
            raise DataError(
                f"{self.directory}: has no split {name!r}, only {', '.join(splits)}; name one it "
                "has, or prepare it elsewhere, with validation files or validation_fraction over 0."
            )
        return splits[name]

    def tokens(self, split: str) -> list[Column]:
        """Returns the ids of each shard."""
        return self._columns(split, "tokens", self._dtype)

    def documents(self, split: str) -> list[Column]:
        """Returns, for each shard, the place at which each document starts."""
        return self._columns(split, "documents", _OFFSET)

    def _columns(
        self, split: str, ending: Literal["tokens", "documents"], dtype: np.dtype
    ) -> list[Column]:
        shards = self.split(split)["shards"]
        stem = lambda shard: os.path.join(self.directory, shard["name"])
        return [Column(f"{stem(shard)}.{ending}", dtype, shard[ending]) for shard in shards]
