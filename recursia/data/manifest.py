"""The manifest of a prepared folder: what its JSON holds, and how it is read."""

import hashlib
import json
import re
from typing import Any, NotRequired, TypedDict

from recursia import buckets, storage
from recursia.errors import DataError

FORMAT_VERSION = 1
SPLITS = ("train", "validation")
DTYPES = ("uint16", "uint32")  # of ids
LONGEST = 1 << 28  # bytes of a manifest: there are 400 in it for each shard
MOST_IDS = 1 << 24  # of a vocabulary: some arrays have a number for each
MOST_TOKENS = 1 << 48  # of a shard


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
    """Returns the manifest of a prepared folder, if `packing.Writer` may have written it.

    Raises:
      DataError: if there is none, or it cannot be read, is of another version, or says what is not
        written: another dtype, a name of a shard outside the folder, a number out of range.
    """
    folder = buckets.path(directory)
    path = folder / "manifest.json"
    try:
        if not folder.is_dir():
            raise DataError(f"{directory}: no such folder; make it with recursia data prepare.")
        if (size := path.stat().st_size) > LONGEST:
            raise ValueError(f"{size} bytes, at most {LONGEST} are read")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        if version == FORMAT_VERSION:
            _check(manifest)
    except FileNotFoundError:
        raise DataError(
            f"{directory}: holds no manifest.json, so no prepared data; "
            "make it with recursia data prepare."
        ) from None
    except storage.Unreachable as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it readable.") from None
    except DataError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error) or repr(error)
        reason = " ".join(said.split())[:200]
        raise DataError(
            f"{path}: damaged ({reason}); remove the folder and prepare again."
        ) from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version is {version!r:.20} but {FORMAT_VERSION} is read here; "
            "remove the folder and prepare again."
        )
    return manifest


def _check(manifest: Manifest) -> None:
    """Raises ValueError, LookupError or TypeError for what no writer writes."""
    _among("dtype", manifest["dtype"], DTYPES)
    tokenizer = manifest["tokenizer"]
    _among("kind", tokenizer["kind"], ("byte", "bpe"))
    _digest("tokenizer.fingerprint", tokenizer["fingerprint"])
    _whole("vocab_size", tokenizer["vocab_size"], 1, MOST_IDS)
    _whole("end_of_text", tokenizer["end_of_text"], 0, tokenizer["vocab_size"] - 1)
    for split, entry in manifest["splits"].items():
        _among("split", split, SPLITS)
        for number, shard in enumerate(entry["shards"]):
            _among("a shard's name", shard["name"], (f"{split}-{number:05d}",))
            _whole("tokens", shard["tokens"], 1, MOST_TOKENS)
            _whole("documents", shard["documents"], 1, shard["tokens"])
            _whole("bytes", shard["bytes"], 0, MOST_TOKENS)
            _digest("sha256", shard["sha256"])
            _digest("documents_sha256", shard["documents_sha256"])
        for count in ("tokens", "documents", "bytes"):
            total = sum(shard[count] for shard in entry["shards"])
            _whole(f"{count} of {split}", entry[count], max(total, count != "bytes"), total)
    for source in manifest.get("sources", []):
        if not all(isinstance(source[field], str) for field in ("split", "name", "sha256")):
            raise ValueError("a source whose split, name and sha256 are not text")
    if manifest["fingerprint"] != (actual := fingerprint(manifest)):
        raise ValueError(
            f"fingerprint {manifest['fingerprint']!r:.14}, its contents have {actual:.12}"
        )


def _among(name: str, value: object, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r:.50}, takes {' or '.join(known)}")


def _whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.30}, takes {least} to {most}")


def _digest(name: str, value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"{name} is {value!r:.20}, takes 64 hexadecimal digits")
