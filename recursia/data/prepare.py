"""Prepares data ahead of training: documents are split, tokenised and packed into a folder."""

import os
from collections.abc import Iterator
from typing import Any

from recursia import console
from recursia.data import held_out, packing, source
from recursia.data import tokenizer as tokenizer_lib
from recursia.data.manifest import Manifest, Record
from recursia.data.request import Options, finished, request
from recursia.data.tokenizer import Tokenizer, from_spec
from recursia.errors import DataError

_BATCH = 1 << 20  # characters of text tokenised at once, by all cores
_EXCERPT_TOKENS = 64


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
) -> Manifest:
    """Writes the folder `output` and returns its manifest; documents of white space are left out.

    If `output` already holds the result of these options and files, nothing is written. Memory
    does not grow with the size of a text file, only with that of a line and with the number of
    words that a tokenizer learns from.

    Args:
      inputs: files as `recursia.data.source.expand` takes them.
      output: the folder to make, absent or empty, or a symbolic link to such a folder. It appears
        only when it is complete.
      tokenizer: this and the arguments after it are the fields of `Options`.

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
    asked = request(inputs, options)
    tokenizer_lib.check(tokenizer, end_of_text)
    is_learned = tokenizer.startswith("bpe:")
    given = None if is_learned else from_spec(tokenizer, lambda: iter(()), end_of_text)
    record = asked.record(given)
    output = os.path.realpath(os.path.expanduser(output))
    if (manifest := finished(output, record)) is not None:
        return manifest
    is_named = bool(asked.files["validation"])
    corpus = held_out.survey(asked.documents, validation_fraction, is_named=is_named)
    return _write(output, given or _learn(tokenizer, corpus), corpus, shard_tokens, record)


def _learn(spec: str, corpus: held_out.Corpus) -> Tokenizer:
    train = lambda: (
        document.chunks() for split, document in corpus.documents() if split == "train"
    )
    with console.doing(
        f"learning {spec} from the training split of {corpus.num_documents:,} documents, "
        f"{corpus.num_bytes / 1e6:,.1f} MB"
    ):
        return from_spec(spec, train)


def _write(
    output: str, tokenizer: Tokenizer, corpus: held_out.Corpus, shard_tokens: int, record: Record
) -> Manifest:
    try:
        with (
            packing.Writer(output, tokenizer, shard_tokens) as writer,
            console.bar("tokenising", corpus.num_bytes) as advance,
        ):
            for num_bytes in pack(writer, tokenizer, corpus.documents(warn=True)):
                advance(num_bytes)
            return writer.finish(record)
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written ({error.strerror or error}); give another output."
        ) from None


def pack(
    writer: packing.Writer, tokenizer: Tokenizer, documents: held_out.Labelled
) -> Iterator[int]:
    """Tokenises and writes documents; yields the bytes of text done since the last yield."""
    batch: list[tuple[str, str | int]] = []  # (split, piece), or (split, bytes) after a document
    size = total = reported = 0  # characters of the batch, bytes read, bytes yielded

    def counted(chunks: Iterator[str]) -> Iterator[str]:
        nonlocal total
        for chunk in chunks:
            total += len(chunk.encode("utf-8"))
            yield chunk

    for split, document in documents:
        start = total
        for piece in tokenizer.pieces(counted(document.chunks())):
            batch.append((split, piece))
            size += len(piece)
            if size >= _BATCH:
                _encode(writer, tokenizer, batch)
                yield total - reported
                batch, size, reported = [], 0, total
        batch.append((split, total - start))
    _encode(writer, tokenizer, batch)
    yield total - reported


def _encode(
    writer: packing.Writer, tokenizer: Tokenizer, batch: list[tuple[str, str | int]]
) -> None:
    """Writes the pieces of a batch; a number ends a document of so many bytes."""
    pieces = [piece for _, piece in batch if isinstance(piece, str)]
    ids = iter(tokenizer.encode_batch(pieces))
    for split, piece in batch:
        if isinstance(piece, str):
            writer.extend(split, next(ids))
        else:
            writer.end(split, piece)


def inspect(directory: str) -> dict[str, Any]:
    """Returns what a prepared folder holds: totals from its manifest, and excerpts of each split.

    Each split has `tokens`, `documents`, `bytes` (of UTF-8), `shards` (their number),
    `bytes_per_token` and `excerpts`: the first tokens of the split's first document, and of the
    middle document of its last shard.

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
            "excerpts": [_excerpt(reader, name, *place) for place in (first, last)],
        }
    keys = ("format_version", "fingerprint", "tokenizer", "dtype", "sources", "options")
    return {key: reader.manifest.get(key) for key in keys} | {"splits": splits}


def _excerpt(reader: packing.Reader, split: str, shard: int, document: int) -> str:
    start = int(reader.documents(split)[shard][document])
    ids = reader.tokens(split)[shard][start : start + _EXCERPT_TOKENS].tolist()
    end = reader.end_of_text
    if end in ids:
        return reader.tokenizer.decode(ids[: ids.index(end)])
    return reader.tokenizer.decode(ids).rstrip("\ufffd")  # the last character may be incomplete
