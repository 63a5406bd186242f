"""Which documents, or which end of a single one, are set aside for validation."""

import array
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial

from recursia import console
from recursia.data.packing import SPLITS
from recursia.data.source import Document
from recursia.errors import DataError

_LEAST = 1024  # bytes that a validation split must have, for one of several documents to be cut
_REACH = 4096  # characters around the place asked for in which a single document's cut is sought

Labelled = Iterator[tuple[str, Document]]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents that hold text, with the split of each; read anew at each call.

    Attributes:
      num_bytes: of UTF-8, of all documents.
      num_documents: of all splits.
    """

    num_bytes: int
    num_documents: int
    _read: Callable[[bool], Labelled]
    _held: bytearray | None = None  # per document, whether it validates; None: its files say it
    _cut: tuple[int, int] | None = None  # a document, and how many of its characters train

    def documents(self, *, warn: bool = False) -> Labelled:
        """Yields (split, document); `warn` says what was skipped."""
        held = iter(self._held or ())
        where, cut = self._cut or (-1, 0)
        for number, (named, document) in enumerate(self._read(warn)):
            if number == where:
                next(held, None)
                yield SPLITS[0], Document(partial(_part, document, 0, cut))
                yield SPLITS[1], Document(partial(_part, document, cut, None))
            elif self._held is None:
                yield named, document
            elif (held_out := next(held, None)) is None:
                raise DataError("prepare: the inputs change while they are read; prepare again.")
            else:
                yield SPLITS[held_out], document


def survey(read: Callable[[bool], Labelled], fraction: float, *, is_named: bool) -> Corpus:
    """Returns the documents with their splits, having read them once.

    A document's own hash decides, so that the split depends neither on order nor on the others.
    Where that leaves validation nothing, the document whose size is nearest to the share asked for
    validates, or its end if it is far larger; where it leaves training nothing, the largest trains.
    A single one is cut at its end.

    Args:
      read: gives the documents with the split that their files were named for, anew at each call;
        its argument says whether to warn of what was skipped.
      fraction: share to set aside, in [0, 1); 0 sets nothing aside.
      is_named: whether the files say what validates, and `fraction` nothing.

    Raises:
      DataError: if no document holds text, none of those for validation does, or a single one has
        too little for two splits.
    """
    held, sizes, names = bytearray(), array.array("q"), set()
    with console.bar("reading", None) as advance:
        for named, document in read(False):
            digest = hashlib.sha256()
            size = 0
            for part in document.parts():
                raw = part.encode("utf-8")
                size += len(raw)
                if fraction and not is_named:
                    digest.update(raw)
                advance(len(raw))
            held.append(int.from_bytes(digest.digest()[:8], "big") / 2**64 < fraction)
            sizes.append(size)
            names.add(named)
    total = sum(sizes)
    wanting = [split for split in SPLITS if split not in names]
    if wanting and (is_named or not names):
        files = "validation files" if "train" in names else "inputs"
        raise DataError(f"prepare: 0 documents of the {files} hold any text; give others.")
    known = Corpus(total, len(sizes), read)
    if is_named:
        return known
    share = fraction * total
    if fraction and (len(sizes) == 1 or not any(held)):
        nearest = min(range(len(sizes)), key=lambda i: abs(sizes[i] - share))
        if len(sizes) == 1 or sizes[nearest] > 2 * share >= 2 * _LEAST:
            _, document = next(itertools.islice(read(False), nearest, None))
            cut = nearest, _place(document, share / sizes[nearest])
            return dataclasses.replace(known, _held=held, _cut=cut)
        held[nearest] = True
    elif all(held):
        held[max(range(len(sizes)), key=sizes.__getitem__)] = False
    return dataclasses.replace(known, _held=held)


def _place(document: Document, fraction: float) -> int:
    """Returns how many characters of a text train: up to a line's end, or a space, if one is near.

    Both parts hold more than white space.
    """
    first, last, at = None, 0, 0
    for part in document.parts():
        if stripped := part.strip():
            start = part.index(stripped[0])
            first = at + start if first is None else first
            last = at + start + len(stripped)
        at += len(part)
    if first is None or last - first < 2:
        raise DataError(
            f"prepare: the one document has {last - (first or 0)} characters, too few to set "
            f"validation_fraction {fraction} of them aside; give more text, or 0 for none."
        )
    wanted = min(max(last - round(fraction * (last - first)), first + 1), last - 1)
    reach = min(_REACH, (wanted - first) // 2, (last - wanted) // 2)
    low, high = max(wanted - reach, first + 1), min(wanted + reach, last - 1)
    near = "".join(_part(document, low - 1, high))  # its character i ends at low + i
    for ends in (lambda c: c == "\n", str.isspace):
        if places := [low + i for i, c in enumerate(near) if ends(c)]:
            return min(places, key=lambda place: abs(place - wanted))
    return wanted


def _part(document: Document, start: int, stop: int | None) -> Iterator[str]:
    """Yields the characters from `start` up to `stop`."""
    at = 0
    for part in document.parts():
        low, high = max(start - at, 0), None if stop is None else stop - at
        if high is not None and high <= 0:
            return
        if piece := part[low:high]:
            yield piece
        at += len(part)
