"""Units of work: runs of files, or of parts of files, whose documents are tokenised at one time.

The units of a request depend on its files alone, not on who works on them; the shards do not depend
on the units (`recursia.data.shards`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypedDict

from recursia.data import held_out, packing
from recursia.data.request import Request
from recursia.data.source import Source
from recursia.data.spool import Spool
from recursia.data.tokenising import tokenise
from recursia.data.tokenizer import Tokenizer
from recursia.errors import DataError

UNIT_BYTES = 1 << 26  # of the files of a unit as they are stored: a minute or so of one core

Advance = Callable[[float], None]  # is called with the bytes of text done since its last call


class Found(TypedDict):
    """What a unit found in a part of a file."""

    file: int  # number of the file in the request
    sha256: str | None  # of the file, in the unit that has its start
    documents: int
    broken: int
    first_broken: list[str]  # where the first is


@dataclasses.dataclass(frozen=True)
class Part:
    """A file, or a part of one that is read by itself.

    Attributes:
      file: number of the file in the request.
      split: the split that it was named for.
      source: reads the part.
      is_first: whether the part has the file's start.
      is_whole: whether it is all of the file.
    """

    file: int
    split: str
    source: Source
    is_first: bool
    is_whole: bool


@dataclasses.dataclass(frozen=True)
class Unit:
    """Parts that follow each other, and their number among the units of the request."""

    number: int
    parts: tuple[Part, ...]

    def documents(self, asked: Request, found: list[Found]) -> held_out.Labelled:
        """Yields the documents that hold more than white space, each with the split of its file.

        Args:
          asked: the request.
          found: receives, for each part, how many there are.

        Raises:
          DataError: if a file cannot be read, is broken, or holds no document.
        """
        options = asked.options
        for part in self.parts:
            count, broken = 0, list[str]()
            for document in part.source.read(options.on_error, options.text_field, broken):
                count += 1
                if any(chunk and not chunk.isspace() for chunk in document.chunks()):
                    yield part.split, document
            if part.is_whole:
                part.source.check_count(count, len(broken))
            found.append(
                {
                    "file": part.file,
                    "sha256": None,
                    "documents": count,
                    "broken": len(broken),
                    "first_broken": broken[:1],
                }
            )

    def make(
        self,
        folder: str,
        asked: Request,
        rule: held_out.Rule,
        tokenizer: Tokenizer,
        advance: Advance,
    ) -> list[Found]:
        """Tokenises the unit into a spool in an existing folder; returns what each part holds.

        Raises:
          DataError: as `documents`, or if a file changes meanwhile.
        """
        found = list[Found]()
        stamps = [part.source.stamp for part in self.parts]
        dtype = packing.dtype(tokenizer.vocab_size)
        with Spool(folder, dtype, tokenizer.end_of_text) as spool:
            documents = rule.label(self.documents(asked, found))
            for num_bytes in tokenise(spool, tokenizer, documents):
                advance(num_bytes)
            spool.sync()
        for part, each, stamp in zip(self.parts, found, stamps, strict=True):
            if part.is_first:
                each["sha256"] = part.source.fingerprint(lambda _: None)
            if part.source.stamp != stamp:
                raise DataError(f"{part.source.path}: changes while it is read; prepare again.")
        return found


def units(files: Mapping[str, Iterable[Source]], num_bytes: int) -> list[Unit]:
    """Returns the units of the files of a request, by the split they are named for.

    Files follow each other in a unit while it has `num_bytes` at most. A file of twice as many or
    more is cut into parts, if its kind can be read from other places than its start.
    """
    runs: list[list[Part]] = [[]]
    size = 0
    for part in _parts(files, num_bytes):
        if runs[-1] and size + part.source.size > num_bytes:
            runs.append([])
            size = 0
        runs[-1].append(part)
        size += part.source.size
    return [Unit(number, tuple(run)) for number, run in enumerate(runs)]


def _parts(files: Mapping[str, Iterable[Source]], num_bytes: int) -> Iterator[Part]:
    named = [(split, source) for split, sources in files.items() for source in sources]
    for number, (split, source) in enumerate(named):
        parts = source.parts(num_bytes)
        for place, part in enumerate(parts):
            yield Part(number, split, part, place == 0, len(parts) == 1)
