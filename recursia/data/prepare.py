"""Prepares data: documents are split, tokenised and packed once, ahead of training."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recursia import console
from recursia.data import held_out, packing, source
from recursia.data import tokenizer as tokenizer_lib
from recursia.data.tokenizer import Tokenizer, from_spec
from recursia.errors import ConfigError, DataError

_BATCH = 1 << 20  # characters of text tokenised at once, by all cores
_EXCERPT_TOKENS = 64

Files = dict[str, tuple[source.Source, ...]]  # by split


@dataclasses.dataclass(frozen=True)
class Options:
    """How to prepare; the one place where the defaults are.

    Attributes:
      tokenizer: what `recursia.data.tokenizer.from_spec` takes. "bpe:N" learns from the training
        split only.
      validation: files of the validation split, as `recursia.data.source.expand` takes them.
      validation_fraction: without such files, the share of the documents to hold out, in [0, 1);
        0 makes no validation split. See `recursia.data.held_out.survey`.
      on_error: "stop" at a broken document, or "skip" it.
      text_field: key of a JSON line's text, or column of a table's.
      shard_tokens: tokens in a shard at most, unless one document alone is longer.
      end_of_text: name of the token that ends a text, in the file of a tokenizer; empty looks for
        the usual ones.
    """

    tokenizer: str = "bpe:4096"
    validation: tuple[str, ...] = ()
    validation_fraction: float = 0.01
    on_error: source.OnError = "stop"
    text_field: str = "text"
    shard_tokens: int = 1 << 27
    end_of_text: str = ""

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
    end_of_text: str,
) -> dict[str, Any]:
    """Writes the folder `output` and returns its manifest; documents of white space are left out.

    If `output` already holds what these options and files would give, nothing is done. Memory
    does not go with the size of a text file, only with that of a line and a tokenizer's words.

    Args:
      inputs: files as `recursia.data.source.expand` takes them.
      output: folder to make; absent or empty, or a symbolic link to such a one. It appears whole
        or not at all.
      tokenizer: see `Options`, as for all that follow.
      validation: see `Options`.
      validation_fraction: see `Options`.
      on_error: see `Options`.
      text_field: see `Options`.
      shard_tokens: see `Options`.
      end_of_text: see `Options`.

    Raises:
      ConfigError: if an option is out of its range.
      DataError: if a file is missing, broken or used twice, a split would be empty, or `output`
        holds something else or cannot be written.
    """
    options = Options(
        tokenizer,
        tuple(validation),
        validation_fraction,
        on_error,
        text_field,
        shard_tokens,
        end_of_text,
    )
    files = _files(inputs, options.validation)
    tokenizer_lib.check(tokenizer, end_of_text)
    learns = tokenizer.startswith("bpe:")
    given = None if learns else from_spec(tokenizer, lambda: iter(()), end_of_text)
    record = _record(files, options, given)
    output = os.path.realpath(os.path.expanduser(output))  # of a link, what it points to
    if (manifest := _finished(output, record)) is not None:
        return manifest
    corpus = held_out.survey(
        lambda warn: _documents(files, options, warn),
        validation_fraction,
        is_named=bool(files["validation"]),
    )
    if given is None:
        train = lambda: (
            document.parts() for split, document in corpus.documents() if split == "train"
        )
        with console.doing(
            f"learning {tokenizer} from the training split of {corpus.num_documents:,} documents, "
            f"{corpus.num_bytes / 1e6:,.1f} MB"
        ):
            given = from_spec(tokenizer, train, end_of_text)
    try:
        with (
            packing.Writer(output, given, shard_tokens) as writer,
            console.bar("tokenising", corpus.num_bytes) as advance,
        ):
            for size in pack(writer, given, corpus.documents(warn=True)):
                advance(size)
            return writer.finish(record)
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written ({error.strerror or error}); give another output."
        ) from None


def pack(
    writer: packing.Writer, tokenizer: Tokenizer, documents: held_out.Labelled
) -> Iterator[int]:
    """Writes documents as they are asked for; yields the bytes of text done, some at a time."""
    waiting, size, done = [], 0, 0

    def counted(parts: Iterator[str]) -> Iterator[str]:
        nonlocal num_bytes
        for part in parts:
            num_bytes += len(part.encode("utf-8"))
            yield part

    for split, document in documents:
        num_bytes = 0
        for piece in tokenizer.pieces(counted(document.parts())):
            waiting.append((split, piece))
            size += len(piece)
            if size >= _BATCH:
                _encode(writer, tokenizer, waiting)
                yield done + num_bytes
                waiting, size, done = [], 0, -num_bytes
        waiting.append((split, num_bytes))
        done += num_bytes
    _encode(writer, tokenizer, waiting)
    yield done


def _encode(
    writer: packing.Writer, tokenizer: Tokenizer, waiting: list[tuple[str, str | int]]
) -> None:
    """Writes pieces of documents, each ended by its bytes."""
    ids = iter(tokenizer.encode_batch([each for _, each in waiting if isinstance(each, str)]))
    for split, each in waiting:
        if isinstance(each, str):
            writer.extend(split, next(ids))
        else:
            writer.end(split, each)


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
    if end in ids:
        return reader.tokenizer.decode(ids[: ids.index(end)])
    return reader.tokenizer.decode(ids).rstrip("\ufffd")  # the last character may be cut in two


def _files(inputs: Sequence[str], validation: Sequence[str]) -> Files:
    files = {"train": source.expand(inputs), "validation": source.expand(validation)}
    if not files["train"]:
        raise DataError("prepare: 0 input files; give at least 1.")
    held_out = {os.path.realpath(each.path) for each in files["validation"]}
    for each in files["train"]:
        if os.path.realpath(each.path) in held_out:
            raise DataError(
                f"{each.path}: named 2 times, for training and for validation; leave it out of one."
            )
    return files


def _record(files: Files, options: Options, given: Tokenizer | None) -> dict[str, Any]:
    """Returns what the manifest says of the request; names and hashes, no paths."""
    asked = dataclasses.asdict(options)
    del asked["validation"], asked["end_of_text"]  # the sources and the tokenizer say it
    asked["tokenizer"] = options.tokenizer if given is None else given.fingerprint
    size = sum(each.size for found in files.values() for each in found)
    with console.bar("digesting", size) as advance:
        sources = [
            {"split": split, "name": each.name, "sha256": each.fingerprint(advance)}
            for split, found in files.items()
            for each in found
        ]
    return {"sources": sources, "options": asked}


def _finished(output: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the manifest if `output` is this preparation already, None if there is nothing."""
    if os.path.islink(output):
        raise DataError(f"{output}: is a link that leads back to itself; give another output.")
    if not os.path.exists(output):
        return None
    if not os.path.isdir(output):
        raise DataError(f"{output}: is a file, not a folder; give another output.")
    if not (entries := len(os.listdir(output))):
        return None
    what = "not prepared data"
    if os.path.isfile(os.path.join(output, "manifest.json")):
        manifest = packing.Reader(output).manifest
        if not (different := _different(manifest, record)):
            return manifest
        what = f"prepared with other {', '.join(different)}"
    raise DataError(
        f"{output}: holds {entries} entries, {what}; give another output, or remove what it holds."
    )


def _different(manifest: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Returns what another preparation was asked for, in words."""
    theirs, ours = manifest.get("options"), record["options"]
    theirs = theirs if isinstance(theirs, dict) else {}
    said = [
        f"{name} ({theirs.get(name)!r:.20}, now {ours[name]!r:.20})"
        for name in ours
        if theirs.get(name) != ours[name]
    ]
    theirs, ours = manifest.get("sources"), record["sources"]
    if theirs == ours:
        return said
    known = {json.dumps(source) for source in theirs} if isinstance(theirs, list) else set()
    names = [source["name"] for source in ours if json.dumps(source) not in known]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [*said, f"sources ({', '.join(names[:3]) or 'fewer, or another order'}{more})"]


def _documents(files: Files, options: Options, warn: bool) -> held_out.Labelled:
    """Yields the documents that hold text, each with the split that its file was named for."""
    how = {"on_error": options.on_error, "text_field": options.text_field, "warn": warn}
    for named, found in files.items():
        for each in found:
            for document in each.documents(**how):
                if any(part and not part.isspace() for part in document.parts()):
                    yield named, document
