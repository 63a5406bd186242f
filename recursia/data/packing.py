"""Prepared data on disk: shards of token ids with the boundaries of documents.

A folder holds `manifest.json`, the tokenizer, and for each shard two files: `SPLIT-00000.tokens`
(little-endian ids; every document is followed by the end of text) and `SPLIT-00000.documents`
(int64: the place in the shard at which each document starts). The folder appears under its name
only when it is complete.
"""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from recursia import buckets
from recursia.data import manifest as manifests
from recursia.data import remote, shards
from recursia.data import tokenizer as tokenizer_lib
from recursia.data.column import Column
from recursia.data.manifest import Manifest, Record, SplitEntry
from recursia.data.shards import OFFSET
from recursia.data.spool import Spool
from recursia.data.vocabulary import named
from recursia.errors import DataError

_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def dtype(vocab_size: int) -> np.dtype:
    """Returns the type of ids below `vocab_size`."""
    return _DTYPES["uint16" if vocab_size <= 1 << 16 else "uint32"]


class Writer:
    """Writes a prepared folder; a context manager that leaves nothing behind on an error.

    All files go to a sibling `OUTPUT.partial-...`, of which `finish` makes the output. If the
    process is killed, that sibling remains; nothing reads it, and it may be removed.
    """

    def __init__(self, output: str, tokenizer: tokenizer_lib.Tokenizer, shard_tokens: int):
        """Creates the sibling folder.

        Args:
          output: the folder to make; it must be absent or empty when `finish` is called.
          tokenizer: the tokenizer of the ids; it is saved beside them.
          shard_tokens: most tokens in a shard, unless a single document is longer.
        """
        self._output, self._tokenizer, self._shard_tokens = output, tokenizer, shard_tokens
        self._folder = f"{os.path.abspath(output)}.partial-{uuid.uuid4().hex[:8]}"
        self._new_parents = new_parents(self._folder)
        os.makedirs(self._folder)
        self._spool = Spool(self._folder, dtype(tokenizer.vocab_size), tokenizer.end_of_text)
        self.extend, self.end = self._spool.extend, self._spool.end

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):  # a full disk; the folder is removed anyway
            self._spool.__exit__()
        shutil.rmtree(self._folder, ignore_errors=True)
        remove_empty(self._new_parents)

    def add(self, split: str, ids: Sequence[int], num_bytes: int) -> None:
        """Appends a document of `num_bytes` of UTF-8; the end of text is appended to its ids."""
        self.extend(split, ids)
        self.end(split, num_bytes)

    def finish(self, record: Record) -> Manifest:
        """Completes the folder and returns its manifest, which includes `record` unchanged."""
        self._spool.__exit__()
        spools, whole = [self._folder], os.path.join(self._folder, "whole")
        return finish(spools, whole, self._output, self._tokenizer, self._shard_tokens, record)


def finish(
    spools: Sequence[str],
    whole: str,
    output: str,
    tokenizer: tokenizer_lib.Tokenizer,
    shard_tokens: int,
    record: Record,
    *,
    num_threads: int = 1,
    advance: Callable[[float], None] = lambda _: None,
) -> Manifest:
    """Makes a prepared folder of spools and returns its manifest.

    Args:
      spools: folders of spools, in the order of their documents.
      whole: folder in which to write; it is made anew, and at the end renamed or uploaded.
      output: the folder to make, absent or empty, or one in a bucket.
      tokenizer: the tokenizer of the ids; it is saved beside them.
      shard_tokens: most tokens in a shard, unless a single document is longer.
      record: is included in the manifest unchanged.
      num_threads: shards written at once.
      advance: is called with the bytes written since its last call.
    """
    shutil.rmtree(whole, ignore_errors=True)
    os.makedirs(whole)
    ids = dtype(tokenizer.vocab_size)
    manifest: Manifest = {
        "format_version": manifests.FORMAT_VERSION,
        "tokenizer": {
            "kind": tokenizer.kind,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
        },
        "dtype": ids.name,
        "splits": shards.join(
            spools, whole, ids, shard_tokens, num_threads=num_threads, advance=advance
        ),
        "fingerprint": "",
    }
    manifest["fingerprint"] = manifests.fingerprint(manifest)
    manifest = {**manifest, **record}
    tokenizer.save(whole)
    with open(os.path.join(whole, "manifest.json"), "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    if buckets.is_place(output):
        remote.upload(whole, output, "manifest.json", num_threads, advance)
    else:
        os.rename(whole, output)
    return manifest


def new_parents(folder: str) -> list[pathlib.Path]:
    """Returns the parents of a folder that do not exist, the nearest first."""
    return [parent for parent in pathlib.Path(folder).parents if not parent.exists()]


def remove_empty(folders: Sequence[pathlib.Path]) -> None:
    """Removes folders that hold nothing."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


class Reader:
    """A prepared folder whose files have the sizes that its manifest says.

    Attributes:
      directory: the folder.
      manifest: the contents of `manifest.json`.
      fingerprint: hash of the tokenizer and of all tokens.
      tokenizer_fingerprint: `Tokenizer.fingerprint` of the tokenizer.
      vocab_size: `Tokenizer.vocab_size` of the tokenizer.
      end_of_text: `Tokenizer.end_of_text` of the tokenizer.
      stamps: of a folder in a bucket, the bytes of each object, and what changes with it.
    """

    def __init__(self, directory: str):
        """Reads the manifest.

        Args:
          directory: on disk, or in a bucket.

        Raises:
          DataError: if the folder or the manifest is missing or damaged, if its format is another,
            or if a file has another size.
        """
        self.directory = directory = os.path.expanduser(directory)
        self.manifest = manifests.read(directory)
        self._dtype = _DTYPES[self.manifest["dtype"]]
        self._cache, self.stamps = remote.Cache(), dict[str, tuple[int, str]]()
        sizes = self._sizes()
        for entry in self.manifest["splits"].values():
            for shard in entry["shards"]:
                ids, places = (
                    shard["tokens"] * self._dtype.itemsize,
                    shard["documents"] * OFFSET.itemsize,
                )
                self._check(shard["name"] + ".tokens", sizes, ids)
                self._check(shard["name"] + ".documents", sizes, places)
        self.fingerprint: str = self.manifest["fingerprint"]
        self.tokenizer_fingerprint: str = self.manifest["tokenizer"]["fingerprint"]
        self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]
        self.end_of_text: int = self.manifest["tokenizer"]["end_of_text"]

    def _sizes(self) -> dict[str, int]:
        """Returns the bytes of each file of the folder."""
        try:
            if not buckets.is_place(self.directory):
                with os.scandir(self.directory) as entries:
                    files = filter(os.path.isfile, entries)
                    return {entry.name: entry.stat().st_size for entry in files}
            self.stamps = remote.stamps(self.directory)
        except OSError as error:
            raise DataError(f"{self.directory}: cannot be read ({error.strerror}).") from None
        return {name: size for name, (size, _) in self.stamps.items()}

    def _check(self, name: str, sizes: Mapping[str, int], expected: int) -> None:
        path = os.path.join(self.directory, name)
        if name not in sizes:
            raise DataError(
                f"{path}: missing, 0 of {expected} bytes; remove the folder and prepare again."
            )
        if (size := sizes[name]) != expected:
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
        return self._columns(split, "documents", OFFSET)

    def _columns(
        self, split: str, ending: Literal["tokens", "documents"], dtype: np.dtype
    ) -> list[Column]:
        entries = self.split(split)["shards"]
        stem = lambda shard: os.path.join(self.directory, shard["name"])
        return [
            Column(f"{stem(shard)}.{ending}", dtype, shard[ending], self._cache)
            for shard in entries
        ]
