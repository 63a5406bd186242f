"""Makes prepared data of the units of a request."""

import os
from typing import Any

import numpy as np

from recursia import buckets, console
from recursia.data import held_out, packing, spool
from recursia.data.manifest import SPLITS, Manifest, SourceEntry
from recursia.data.partial import WHOLE, Partial
from recursia.data.source import Document
from recursia.data.tokenizer import Tokenizer
from recursia.errors import DataError


def join(
    partial: Partial, tokenizer: Tokenizer, options: dict[str, Any], num_threads: int
) -> Manifest:
    """Writes the output of units that are all made, and removes what they were made in.

    Args:
      partial: the units.
      tokenizer: that of the units.
      options: what the manifest says of the options.
      num_threads: shards written at once.

    Raises:
      DataError: if a file has no documents or a split would be empty.
    """
    try:
        sources, spools = _sources(partial), _spools(partial, tokenizer)
    except DataError:  # another request is needed: there is nothing to go on from
        partial.remove()
        raise
    size = sum(os.path.getsize(os.path.join(s, f"{n}.tokens")) for s in spools for n in SPLITS)
    is_uploaded = buckets.is_place(partial.output)
    about = "joining and uploading" if is_uploaded else "joining"
    with console.bar(about, size * (1 + is_uploaded)) as advance:
        manifest = packing.finish(
            spools,
            os.path.join(partial.path, WHOLE),
            partial.output,
            tokenizer,
            partial.asked.options.shard_tokens,
            {"sources": sources, "options": options},
            num_threads=num_threads,
            advance=advance,
        )
    partial.remove()
    return manifest


def _sources(partial: Partial) -> list[SourceEntry]:
    """Returns the manifest's entries of the files; prints how many records were skipped."""
    named = [(split, each) for split, files in partial.asked.files.items() for each in files]
    digests, counts = [""] * len(named), np.zeros((len(named), 2), np.int64)
    first: list[list[str]] = [[] for _ in named]
    for unit in partial.units:
        for found in partial.found(unit):
            number = found["file"]
            digests[number] = found["sha256"] or digests[number]
            counts[number] += found["documents"], found["broken"]
            first[number] = first[number] or found["first_broken"]
    for (_, source), (documents, broken), where in zip(named, counts.tolist(), first, strict=True):
        source.say_skipped(broken, where)
        source.check_count(documents, broken)
    return [
        {"split": split, "name": source.name, "sha256": digest}
        for (split, source), digest in zip(named, digests, strict=True)
    ]


def _spools(partial: Partial, tokenizer: Tokenizer) -> list[str]:
    """Returns the units' spools, of which one is made anew if a document must be moved."""
    spools = [partial.spool(unit) for unit in partial.units]
    counts = {n: [spool.count(folder, n) for folder in spools] for n in SPLITS}
    splits = {split for split in SPLITS if any(counts[split])}
    fraction = partial.asked.fraction
    held_out.check(splits, fraction is None)
    if not fraction or (len(splits) == len(SPLITS)):
        return spools
    (split,) = splits  # all documents are in one
    sizes = np.concatenate([spool.counts(folder, split)[:, 1] for folder in spools])
    starts = np.cumsum([0, *counts[split]])
    place = lambda number: int(np.searchsorted(starts, number, side="right")) - 1

    def read(number: int) -> Document:
        unit = place(number)
        documents = partial.units[unit].documents(partial.asked, [])
        return next(
            document for at, (_, document) in enumerate(documents, starts[unit]) if at == number
        )

    num_chosen = len(sizes) if split == "validation" else 0
    if (moved := held_out.moved(sizes, num_chosen, fraction, read)) is not None:
        unit = partial.units[place(moved.number)]
        here = held_out.Moved(moved.number - int(starts[unit.number]), moved.cut)
        with console.doing(f"setting {'a document' if moved.cut is None else 'its end'} aside"):
            partial.make(unit, tokenizer, lambda _: None, here)
        spools[unit.number] = partial.spool(unit, here)
    return spools
