"""The manifest of a prepared folder: what its JSON holds, and how it is read."""

import hashlib
import json
import os
from typing import Any, NotRequired, TypedDict

from recursia.errors import DataError

FORMAT_VERSION = 1
SPLITS = ("train", "validation")


class ShardEntry(TypedDict):
    """One shard: the stem of its two files, its counts and the sha256 of both files, in hex."""

    name: str
    tokens: int
    documents: int
    bytes: int  # of the text in UTF-8
    sha256: str
    documents_sha256: str


class SplitEntry(TypedDict):
    """Totals over the shards of a split."""

    tokens: int
    documents: int
    bytes: int
    shards: list[ShardEntry]


class TokenizerEntry(TypedDict):
    """The attributes of a `Tokenizer` by their names."""

    kind: str
    fingerprint: str
    vocab_size: int
    end_of_text: int


class SourceEntry(TypedDict):
    """A file that documents came from: the split it was named for, its name and its sha256."""

    split: str
    name: str
    sha256: str


class Record(TypedDict):
    """What a folder was made from; the options are those of `request.Options`."""

    sources: NotRequired[list[SourceEntry]]
    options: NotRequired[dict[str, Any]]


class Manifest(Record):
    """What `manifest.json` holds; `dtype` is that of the ids."""

    format_version: int
    tokenizer: TokenizerEntry
    dtype: str
    splits: dict[str, SplitEntry]
    fingerprint: str


def canonical_hash(value: object) -> str:
    """Returns the sha256, in hex, of a JSON value; the order of its keys does not matter."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def fingerprint(manifest: Manifest) -> str:
    """Returns the hash of all that determines the tokens: no names of shards, no `Record`."""
    splits = {
        split: [{k: v for k, v in shard.items() if k != "name"} for shard in entry["shards"]]
        for split, entry in manifest["splits"].items()
    }
    keys = ("format_version", "tokenizer", "dtype")
    return canonical_hash({key: manifest[key] for key in keys} | {"splits": splits})


def read(directory: str) -> Manifest:
    """Returns the manifest of a prepared folder; only its format version is checked.

    Raises:
      DataError: if there is none, or it cannot be read, or it is of another version.
    """
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
