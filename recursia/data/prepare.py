"""Prepares data ahead of training: documents are split, tokenised and packed into a folder."""

import concurrent.futures
import contextlib
import os
from collections.abc import Sequence
from typing import Any

from recursia import buckets, console, storage
from recursia.data import held_out, joining, packing, units, workers
from recursia.data import tokenizer as tokenizer_lib
from recursia.data.manifest import Manifest
from recursia.data.partial import Partial
from recursia.data.request import Options, finished, request
from recursia.data.tokenizer import Tokenizer, from_spec
from recursia.data.units import Unit
from recursia.errors import ConfigError, DataError, StorageError

_EXCERPT_TOKENS = 64


def prepare(
    inputs: Sequence[str],
    output: str,
    options: Options,
    *,
    num_workers: int = 0,
    part: tuple[int, int] | None = None,
    partial_folder: str = "",
) -> Manifest | None:
    """Writes the folder `output` and returns its manifest; documents of white space are left out.

    If `output` already holds the result of these options and files, nothing is written. If the
    folder `OUTPUT.partial` holds some of it, the rest is made. The result does not depend on the
    number of workers and parts. Memory does not grow with the size of a file, only with that of a
    line and with the number of words that a tokenizer learns from.

    Args:
      inputs: files as `recursia.data.named.expand` takes them.
      output: the folder to make, absent or empty, or a symbolic link to such a folder; or one in a
        bucket. It appears only when it is complete; in a bucket, its manifest does.
      options: how to prepare.
      num_workers: processes that tokenise at once; 0 takes one for each core.
      part: (i, n) makes the i-th of n parts of the work, counted from 1, into `OUTPUT.partial`, and
        returns None. None makes what is missing and joins all.
      partial_folder: in place of `OUTPUT.partial`, which lies beside the output, or in the current
        folder if the output is in a bucket.

    Raises:
      ConfigError: if an option is out of its range.
      DataError: if a file is missing, broken or used twice, a split would be empty, `output` holds
        something else or cannot be written, or another process prepares there.
      StorageError: if the disk is full.
    """
    asked = request(inputs, options)
    given = _given(options, part)
    recorded = asked.recorded(given)
    if not (is_remote := buckets.is_place(output)):
        output = os.path.realpath(os.path.expanduser(output))
    path = partial_folder or f"{os.path.basename(output) if is_remote else output}.partial"
    num_workers = num_workers or workers.cores()
    try:
        manifest = finished(output, asked, recorded)
        partial = Partial(output, os.path.abspath(path), asked, units.UNIT_BYTES)
        if manifest is not None:
            _clean(partial, recorded)
            return manifest
        with partial.held(recorded, part):
            tokenizer = _kept(partial, given)
            if part is None:
                _check(partial, tokenizer)
            missing = _missing(partial, part)
            with console.bar("tokenising", _size(missing)) as advance:
                workers.make(partial, tokenizer, missing, num_workers, advance)
            if part is not None:
                return None
            return joining.join(partial, tokenizer, recorded, num_workers)
    except OSError as error:
        kind = StorageError if error.errno in storage.FULL else DataError
        raise kind(
            f"{output}: cannot be written ({error.strerror or error}); give another output."
        ) from None


def _missing(partial: Partial, part: tuple[int, int] | None) -> list[Unit]:
    """Returns the units of a part that are not made; says so if some are."""
    own = [unit for unit in partial.units if _is_of(unit, part)]
    missing = [unit for unit in own if not partial.is_made(unit)]
    if len(missing) < len(own):
        made = len(own) - len(missing)
        console.say(f"{partial.path}: has {made} of {len(own)} units; going on from there")
    return missing


def _check(partial: Partial, tokenizer: Tokenizer) -> None:
    """Takes away units that an earlier process made and that are not what it made."""
    if not (made := [unit for unit in partial.units if partial.is_made(unit)]):
        return
    is_whole = lambda unit: partial.is_whole(unit, tokenizer)
    with (
        console.bar("checking units", len(made), "units") as advance,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        for unit, whole in zip(made, pool.map(is_whole, made), strict=True):
            if not whole:
                console.say(f"{partial.spool(unit)}: is damaged; it is made anew")
                partial.drop(unit)
            advance(1)


def _clean(partial: Partial, options: dict[str, Any]) -> None:
    """Removes what a process left that was killed when the output was there."""
    if os.path.isdir(partial.path):
        with contextlib.suppress(DataError), partial.held(options, None):  # unless of another
            partial.remove()


def _given(options: Options, part: tuple[int, int] | None) -> Tokenizer | None:
    """Returns the tokenizer that the options name, or None if it is yet to be learned."""
    tokenizer_lib.check(options.tokenizer, options.end_of_text)
    if not options.tokenizer.startswith("bpe:"):
        return from_spec(options.tokenizer, lambda: iter(()), options.end_of_text)
    if part is not None:
        raise ConfigError(
            f"--part={part[0]}/{part[1]}: tokenizer {options.tokenizer} is learned from all text, "
            "of which a part reads its own; prepare a sample with it first, and give the folder of "
            "that as --tokenizer"
        )
    return None


def _is_of(unit: Unit, part: tuple[int, int] | None) -> bool:
    return part is None or unit.number % part[1] == part[0] - 1


def _kept(partial: Partial, given: Tokenizer | None) -> Tokenizer:
    """Returns the tokenizer, which the folder keeps; learns it if it was not given."""
    if (tokenizer := partial.tokenizer()) is None:
        tokenizer = given or _learned(partial)
        partial.keep(tokenizer)
    elif given and tokenizer.fingerprint != given.fingerprint:
        raise DataError(
            f"{partial.path}: holds another tokenizer than the one that is asked for; remove it to "
            "begin anew."
        )
    return tokenizer


def _learned(partial: Partial) -> Tokenizer:
    asked = partial.asked
    documents = lambda: (pair for unit in partial.units for pair in unit.documents(asked, []))
    rule, count, num_bytes = held_out.survey(documents, asked.fraction)
    train = lambda: (
        document.chunks() for split, document in rule.label(documents()) if split == "train"
    )
    spec = asked.options.tokenizer
    with console.doing(
        f"learning {spec} from the training split of {count:,} documents, {num_bytes / 1e6:,.1f} MB"
    ):
        return from_spec(spec, train)


def _size(missing: list[Unit]) -> int | None:
    """Returns the bytes of the files of units, or None if not all of them are plain text."""
    sources = [part.source for unit in missing for part in unit.parts]
    is_plain = all(source.path.lower().endswith((".txt", ".jsonl")) for source in sources)
    return sum(source.size for source in sources) if is_plain else None


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
