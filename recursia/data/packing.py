"""Prepared data on disk: shards of tokens with the boundaries of documents.

A folder holds `manifest.json`, the tokenizer, and for each split `NAME-00000.tokens` (raw
little-endian ids; every document is followed by the end of text) beside `NAME-00000.documents`
(raw int64: where in the shard each document starts). It appears whole or not at all.
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
from typing import Any

import numpy as np

from recursia.data import tokenizer as tokenizer_lib
from recursia.errors import DataError

FORMAT_VERSION = 1
SPLITS = ("train", "validation")
_OFFSET = np.dtype("<i8")
_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def canonical_hash(value: Any) -> str:
    """Returns the sha256, in hex, of a JSON value however its keys were ordered."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


class Writer:
    """Writes a prepared folder; a context manager that leaves nothing behind on an error.

    Everything goes to a sibling `OUTPUT.partial-...`, which `finish` renames to the output. After
    a kill that sibling remains; nothing reads it, and it may be removed.
    """

    def __init__(self, output: str, tokenizer: tokenizer_lib.Tokenizer, shard_tokens: int):
        """Creates the sibling folder.

        Args:
          output: the folder to appear; it must be absent or empty when `finish` is called.
          tokenizer: of the ids to come; saved beside them.
          shard_tokens: tokens in a shard at most, unless one document alone is longer.
        """
        self._output = output
        self._folder = f"{os.path.abspath(output)}.partial-{uuid.uuid4().hex[:8]}"
        self._tokenizer = tokenizer
        self._shard_tokens = shard_tokens
        self._dtype = _DTYPES["uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"]
        self._open: dict[str, _Shard] = {}
        self._done: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self._waiting: list[np.ndarray] = []  # ids of a document that is in no shard yet
        self._waiting_tokens = 0
        self._is_inside = False  # a document that is in one already
        parents = pathlib.Path(self._folder).parents
        self._made = [parent for parent in parents if not parent.exists()]  # the nearest first
        os.makedirs(self._folder)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        for shard in self._open.values():  # all finished already if all went well
            with contextlib.suppress(OSError):  # a full disk; the folder goes anyway
                shard.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        for parent in self._made:  # stays if the output is in it
            with contextlib.suppress(OSError):
                parent.rmdir()

    def add(self, split: str, ids: Sequence[int], num_bytes: int) -> None:
        """Appends one document, without its end of text, that stands for `num_bytes` of UTF-8."""
        self.extend(split, ids)
        self.end(split, num_bytes)

    def extend(self, split: str, ids: Sequence[int]) -> None:
        """Appends the next ids of a document, whose `end` comes before the next document."""
        self._waiting.append(np.asarray(ids, self._dtype))
        self._waiting_tokens += len(ids)
        shard = self._open.get(split)
        if self._is_inside or shard is None or not self._fits(shard):
            self._flush(split)  # else what is to come may be too much for this shard

    def end(self, split: str, num_bytes: int) -> None:
        """Ends a document that stands for `num_bytes` of UTF-8."""
        self.extend(split, [self._tokenizer.end_of_text])
        self._flush(split)
        self._open[split].bytes += num_bytes
        self._is_inside = False

    def _fits(self, shard: "_Shard") -> bool:
        return shard.tokens + self._waiting_tokens <= self._shard_tokens

    def _flush(self, split: str) -> None:
        """Writes what waits: into the split's shard, or a new one if a new document is too long."""
        shard = self._open.get(split)
        if shard is not None and not self._is_inside and not self._fits(shard):
            self._done[split].append(self._open.pop(split).close())
            shard = None
        if shard is None:
            name = f"{split}-{len(self._done[split]):05d}"
            shard = self._open[split] = _Shard(os.path.join(self._folder, name))
        if not self._is_inside:
            shard.begin()
        self._is_inside = True
        for tokens in self._waiting:
            shard.add(tokens)
        self._waiting.clear()
        self._waiting_tokens = 0

    def finish(self, record: dict[str, Any]) -> dict[str, Any]:
        """Completes the folder and returns its manifest, which also holds `record` as it is."""
        for split in tuple(self._open):
            self._done[split].append(self._open.pop(split).close())
        totals = ("tokens", "documents", "bytes")
        splits = {
            split: {key: sum(s[key] for s in shards) for key in totals} | {"shards": shards}
            for split, shards in self._done.items()
            if shards
        }
        fields = ("kind", "fingerprint", "vocab_size", "end_of_text")
        manifest = {
            "format_version": FORMAT_VERSION,
            "tokenizer": {name: getattr(self._tokenizer, name) for name in fields},
            "dtype": self._dtype.name,
            "splits": splits,
        }
        anonymous = {
            split: [{k: v for k, v in shard.items() if k != "name"} for shard in entry["shards"]]
            for split, entry in splits.items()
        }
        manifest["fingerprint"] = canonical_hash(manifest | {"splits": anonymous})
        manifest |= record
        self._tokenizer.save(self._folder)
        with open(os.path.join(self._folder, "manifest.json"), "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=2, ensure_ascii=False)
            _sync(file)
        os.rename(self._folder, self._output)
        return manifest


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

    def close(self) -> dict[str, Any]:
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


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


class Reader:
    """A prepared folder, checked against its manifest by the sizes of its files.

    Attributes:
      directory: the folder.
      manifest: what `manifest.json` holds.
    """

    def __init__(self, directory: str):
        """Reads the manifest.

        Raises:
          DataError: if the folder or manifest is missing or damaged, is of another format, or a
            file has not the bytes it should.
        """
        self.directory = directory = os.path.expanduser(directory)
        self.manifest = _manifest(directory)
        try:
            self._dtype = _DTYPES[self.manifest["dtype"]]
            for entry in self.manifest["splits"].values():
                for shard in entry["shards"]:
                    self._check(shard["name"] + ".tokens", shard["tokens"] * self._dtype.itemsize)
                    self._check(shard["name"] + ".documents", shard["documents"] * _OFFSET.itemsize)
            self.fingerprint: str = self.manifest["fingerprint"]
            self.tokenizer_fingerprint: str = self.manifest["tokenizer"]["fingerprint"]
            self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]
            self.end_of_text: int = self.manifest["tokenizer"]["end_of_text"]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{directory}: manifest.json is damaged ({error!r}); "
                "remove the folder and prepare again."
            ) from None

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
        """The tokenizer the data was prepared with."""
        return tokenizer_lib.load(self.directory)

    @property
    def tokenizer_name(self) -> str:
        """What to call the tokenizer, as `Tokenizer.name`."""
        kind = self.manifest["tokenizer"].get("kind")
        return tokenizer_lib.named(kind, self.vocab_size, self.tokenizer_fingerprint)

    def split(self, name: str) -> dict[str, Any]:
        """Returns the manifest's entry of a split: tokens, documents, bytes, shards.

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

    def tokens(self, split: str) -> list[np.ndarray]:
        """Returns each shard's ids, memory-mapped."""
        return self._map(split, ".tokens", self._dtype)

    def documents(self, split: str) -> list[np.ndarray]:
        """Returns, for each shard, where in it each document starts, memory-mapped."""
        return self._map(split, ".documents", _OFFSET)

    def _map(self, split: str, ending: str, dtype: np.dtype) -> list[np.ndarray]:
        stems = [os.path.join(self.directory, s["name"]) for s in self.split(split)["shards"]]
        return [np.memmap(stem + ending, dtype, mode="r") for stem in stems]


def _manifest(directory: str) -> dict[str, Any]:
    path = os.path.join(directory, "manifest.json")
    if not os.path.isdir(directory):
        raise DataError(f"{directory}: no such folder; make it with recursia data prepare.")
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        version = manifest["format_version"]
    except FileNotFoundError:
        raise DataError(
            f"{directory}: holds no manifest.json, so no prepared data; "
            "make it with recursia data prepare."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(repr(error).split())
        raise DataError(
            f"{path}: damaged ({reason}); remove the folder and prepare again."
        ) from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version is {version} but {FORMAT_VERSION} is read here; "
            "remove the folder and prepare again."
        )
    return manifest
