"""Sets documents, or the end of a single one, aside for validation."""

import array
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator
from functools import partial

import numpy as np

from recursia import console
from recursia.data.manifest import SPLITS
from recursia.data.source import Document
from recursia.errors import DataError

_MIN_BYTES = 1024  # of a validation split that is cut from one of several documents
_REACH = 4096  # characters before and after the wanted cut in which a better one is sought

Labelled = Iterator[tuple[str, Document]]  # documents, each with the name of its split


@dataclasses.dataclass(frozen=True)
class Moved:
    """A document that its hash does not place.

    Attributes:
      number: of the document, from 0.
      cut: its first character in the validation split; None moves it to the other split, whole.
    """

    number: int
    cut: int | None


@dataclasses.dataclass(frozen=True)
class Rule:
    """Says the split of each document.

    Attributes:
      fraction: share of the documents whose hash chooses the validation split; None leaves each in
        the split that its file was named for.
      moved: the exception, if there is one.
    """

    fraction: float | None
    moved: Moved | None = None

    def label(self, documents: Labelled) -> Labelled:
        """Yields documents with the split of each, given that of their files."""
        moved = self.moved or Moved(-1, None)
        for number, (split, document) in enumerate(documents):
            if number == moved.number and (cut := moved.cut) is not None:
                yield SPLITS[0], Document(partial(_slice, document, 0, cut))
                yield SPLITS[1], Document(partial(_slice, document, cut, None))
            elif self.fraction is None:
                yield split, document
            else:
                chosen = _is_chosen(document, self.fraction)
                yield SPLITS[chosen != (number == moved.number)], document


def moved(
    sizes: np.ndarray, num_chosen: int, fraction: float, read: Callable[[int], Document]
) -> Moved | None:
    """Returns the document that must be moved, so that both splits hold text.

    The hash of a document decides, so the split depends neither on the order of the documents nor
    on the other documents. If no hash chooses validation, the document whose size is nearest to the
    wanted share becomes the validation split, or only its end if the document is much larger. If
    every hash chooses validation, the largest document is used for training. A single document is
    cut near its end.

    Args:
      sizes: int64 [documents], the bytes of UTF-8 of each; at least one.
      num_chosen: documents whose hash chooses validation.
      fraction: share of the text to set aside, in [0, 1); 0 sets nothing aside.
      read: returns the document of a number.

    Raises:
      DataError: if a single document is too short for two splits.
    """
    if not fraction or (0 < num_chosen < len(sizes) and len(sizes) > 1):
        return None
    share = fraction * int(sizes.sum())
    if len(sizes) > 1 and num_chosen:
        return Moved(int(sizes.argmax()), None)
    nearest = int(np.abs(sizes - share).argmin())
    if len(sizes) == 1 or sizes[nearest] > 2 * share >= 2 * _MIN_BYTES:
        return Moved(nearest, _place(read(nearest), share / int(sizes[nearest])))
    return Moved(nearest, None)


def check(splits: Collection[str], is_named: bool) -> None:
    """Checks that no split is empty that may not be.

    Args:
      splits: those that hold documents.
      is_named: whether files were named for validation.

    Raises:
      DataError: if there is no document, or the files named for a split hold none.
    """
    if (is_named and any(split not in splits for split in SPLITS)) or not splits:
        files = "validation files" if "train" in splits else "inputs"
        raise DataError(f"prepare: 0 documents of the {files} hold any text; give others.")


def survey(read: Callable[[], Labelled], fraction: float | None) -> tuple[Rule, int, int]:
    """Reads all documents once; returns their rule, their number and their bytes of UTF-8.

    Args:
      read: yields the documents, each with the split that its file was named for.
      fraction: see `Rule`.

    Raises:
      DataError: as `check` and `moved` do.
    """
    sizes, splits, num_chosen = array.array("q"), set(), 0
    with console.bar("reading", None) as advance:
        for split, document in read():
            size = sum(len(chunk.encode("utf-8")) for chunk in document.chunks())
            num_chosen += fraction is not None and _is_chosen(document, fraction)
            advance(size)
            sizes.append(size)
            splits.add(split)
    check(splits, fraction is None)
    document = lambda number: next(itertools.islice(read(), number, None))[1]
    exception = moved(np.array(sizes), num_chosen, fraction or 0.0, document)
    return Rule(fraction, exception), len(sizes), sum(sizes)


def _is_chosen(document: Document, fraction: float) -> bool:
    """Returns whether the hash of a document chooses validation."""
    if not fraction:
        return False
    digest = hashlib.sha256()
    for chunk in document.chunks():
        digest.update(chunk.encode("utf-8"))
    return int.from_bytes(digest.digest()[:8], "big") / 2**64 < fraction


def _place(document: Document, fraction: float) -> int:
    """Returns the character at which validation starts, after a line or a word if one ends near.

    Both sides hold more than white space.
    """
    first, last, start = None, 0, 0
    for chunk in document.chunks():
        if stripped := chunk.strip():
            offset = start + chunk.index(stripped[0])
            first = offset if first is None else first
            last = offset + len(stripped)
        start += len(chunk)
    if first is None or last - first < 2:
        raise DataError(
            f"prepare: the one document has {last - (first or 0)} characters, too few to set "
            f"validation_fraction {fraction} of them aside; give more text, or 0 for none."
        )
    wanted = min(max(last - round(fraction * (last - first)), first + 1), last - 1)
    reach = min(_REACH, (wanted - first) // 2, (last - wanted) // 2)
    low, high = max(wanted - reach, first + 1), min(wanted + reach, last - 1)
    near = "".join(_slice(document, low - 1, high))  # near[i] is the last character before low + i
    for is_end in (lambda c: c == "\n", str.isspace):
        if places := [low + i for i, c in enumerate(near) if is_end(c)]:
            return min(places, key=lambda place: abs(place - wanted))
    return wanted


def _slice(document: Document, start: int, stop: int | None) -> Iterator[str]:
    """Yields the characters from `start` up to `stop`."""
    first = 0  # character of the chunk
    for chunk in document.chunks():
        low, high = max(start - first, 0), None if stop is None else stop - first
        if high is not None and high <= 0:
            return
        if text := chunk[low:high]:
            yield text
        first += len(chunk)
