"""Prepares data: documents are split, tokenised and packed once, ahead of training."""

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recursia.data import packing, source
from recursia.data.tokenizer import Tokenizer, from_spec
from recursia.errors import ConfigError, DataError

_BATCH_BYTES = 1 << 22  # text tokenised at once
_EXCERPT_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """How to prepare; the one place where the defaults are.

    Attributes:
      tokenizer: what `recursia.data.tokenizer.from_spec` takes. "bpe:N" learns from the training
        split only.
      validation: files of the validation split, as `recursia.data.source.expand` takes them.
      validation_fraction: without such files, the share of the documents to hold out, in [0, 1).
        A document's own hash decides, so the split does not depend on order or other documents.
      on_error: "stop" at a broken document, or "skip" it.
      text_field: key of a JSON line's text.
      shard_tokens: tokens in a shard at most, unless one document alone is longer.
    """

    tokenizer: str = "bpe:4096"
    validation: tuple[str, ...] = ()
    validation_fraction: float = 0.01
    on_error: source.OnError = "stop"
    text_field: str = "text"
    shard_tokens: int = 1 << 27

    def __post_init__(self):
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(
                f"validation_fraction is {self.validation_fraction} but must be in [0, 1); "
                "give the share of the documents to hold out."
            )
        if self.on_error not in ("stop", "skip"):
            raise ConfigError(f"on_error is {self.on_error!r} but must be 'stop' or 'skip'.")
        if self.shard_tokens < 1:
            raise ConfigError(f"shard_tokens is {self.shard_tokens} but must be at least 1 token.")


def prepare(
    inputs: tuple[str, ...],
    output: str,
    *,
    tokenizer: str,
    validation: tuple[str, ...],
    validation_fraction: float,
    on_error: source.OnError,
    text_field: str,
    shard_tokens: int,
) -> dict[str, Any]:
    """Writes the folder `output` and returns its manifest; documents of white space are left out.

    If `output` already holds what these options and files would give, nothing is done.

    Args:
      inputs: files as `recursia.data.source.expand` takes them.
      output: folder to make; absent or empty. It appears whole or not at all.
      tokenizer: see `Options`, as for all that follow.
      validation: see `Options`.
      validation_fraction: see `Options`.
      on_error: see `Options`.
      text_field: see `Options`.
      shard_tokens: see `Options`.

    Raises:
      ConfigError: if an option is out of its range.
      DataError: if a file is missing, broken or used twice, a split would be empty, or `output`
        holds something else or cannot be written.
    """
    options = Options(
        tokenizer, tuple(validation), validation_fraction, on_error, text_field, shard_tokens
    )
    files = _files(inputs, options.validation)
    given = None if tokenizer.startswith("bpe:") else from_spec(tokenizer, lambda: iter(()))
    record = _record(files, options, given)
    if (manifest := _finished(output, record)) is not None:
        return manifest
    texts = functools.partial(_documents, files, options)
    if given is None:
        train = lambda: (text for split, text in texts(warn=False) if split == "train")
        given = from_spec(tokenizer, train)
    try:
        with packing.Writer(output, given, shard_tokens) as writer:
            _write(writer, given, texts(warn=True))
            return writer.finish(record)
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written ({error.strerror or error}); give another output."
        ) from None


def inspect(directory: str) -> dict[str, Any]:
    """Returns what a prepared folder holds: its manifest's totals and two excerpts of each split.

    Each split has `tokens`, `documents`, `bytes` (of UTF-8), `shards` (a count), `bytes_per_token`
    and `excerpts`, the text of the first tokens of its first document and of the middle one of its
    last shard.

    Raises:
      DataError: if the folder is missing or damaged.
    """
    reader = packing.Reader(directory)
    splits = {}
    for name, entry in reader.manifest["splits"].items():
        first, last = (0, 0), (-1, entry["shards"][-1]["documents"] // 2)
        splits[name] = {key: entry[key] for key in ("tokens", "documents", "bytes")} | {
            "shards": len(entry["shards"]),
            "bytes_per_token": entry["bytes"] / entry["tokens"],
            "excerpts": [_excerpt(reader, name, *where) for where in (first, last)],
        }
    keys = ("format_version", "fingerprint", "tokenizer", "dtype", "sources", "options")
    return {key: reader.manifest.get(key) for key in keys} | {"splits": splits}


def _excerpt(reader: packing.Reader, split: str, shard: int, document: int) -> str:
    start = int(reader.documents(split)[shard][document])
    ids = reader.tokens(split)[shard][start : start + _EXCERPT_TOKENS].tolist()
    end = reader.end_of_text
    return reader.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)


def _files(inputs: Sequence[str], validation: Sequence[str]) -> dict[str, tuple[str, ...]]:
    files = {"train": source.expand(inputs), "validation": source.expand(validation)}
    if not files["train"]:
        raise DataError("prepare: 0 input files; give at least 1.")
    held_out = {os.path.realpath(path) for path in files["validation"]}
    for path in files["train"]:
        if os.path.realpath(path) in held_out:
            raise DataError(
                f"{path}: named 2 times, for training and for validation; leave it out of one."
            )
    return files


def _record(
    files: Mapping[str, Sequence[str]], options: Options, given: Tokenizer | None
) -> dict[str, Any]:
    """Returns what the manifest says of the request; names and hashes, no paths."""
    asked = dataclasses.asdict(options)
    del asked["validation"]  # the sources say it
    asked["tokenizer"] = options.tokenizer if given is None else given.fingerprint
    sources = [
        {"split": split, "name": os.path.basename(path), "sha256": _digest(path)}
        for split, paths in files.items()
        for path in paths
    ]
    return {"sources": sources, "options": asked}


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file.") from None


def _finished(output: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the manifest if `output` is this preparation already, None if there is nothing."""
    if not os.path.lexists(output):
        return None
    if not os.path.isdir(output):
        raise DataError(f"{output}: is a file, not a folder; give another output.")
    if not (entries := len(os.listdir(output))):
        return None
    what = "not prepared data"
    if os.path.isfile(os.path.join(output, "manifest.json")):
        manifest = packing.Reader(output).manifest
        different = [key for key in record if manifest.get(key) != record[key]]
        if not different:
            return manifest
        what = f"prepared with other {' and '.join(different)}"
    raise DataError(
        f"{output}: holds {entries} entries, {what}, where 0 are expected; "
        "give another output or remove it."
    )


def _documents(
    files: Mapping[str, Sequence[str]], options: Options, *, warn: bool
) -> Iterator[tuple[str, str]]:
    """Yields (split, text) and, at the end, raises if a split got nothing."""
    counts: collections.Counter[str] = collections.Counter()
    for named, paths in files.items():
        for path in paths:
            for text in source.documents(
                path, on_error=options.on_error, text_field=options.text_field, warn=warn
            ):
                if text.strip():
                    split = named if files["validation"] else _split(text, options)
                    counts[split] += 1
                    yield split, text
    if not counts:
        raise DataError("prepare: 0 documents hold any text; give inputs that do.")
    if len(counts) < len(packing.SPLITS):
        raise DataError(
            f"prepare: {counts['train']} documents fell to train and {counts['validation']} to "
            "validation, each needs 1 or more; name validation files with --validation, or "
            f"change --validation_fraction from {options.validation_fraction}."
        )


def _split(text: str, options: Options) -> str:
    drawn = int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64
    return "validation" if drawn < options.validation_fraction else "train"


def _write(
    writer: packing.Writer, tokenizer: Tokenizer, documents: Iterator[tuple[str, str]]
) -> None:
    for batch in _batches(documents):
        ids = tokenizer.encode_batch([text for _, text in batch])
        for (split, text), document in zip(batch, ids, strict=True):
            writer.add(split, document, len(text.encode("utf-8")))


def _batches(documents: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Groups documents into batches large enough to keep all cores at work."""
    batch, size = [], 0
    for split, text in documents:
        batch.append((split, text))
        size += len(text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
