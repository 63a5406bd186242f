"""Sets documents, or the end of a single one, aside for validation."""

import array
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial

from recursia import console
from recursia.data.manifest import SPLITS
from recursia.data.source import Document
from recursia.errors import DataError

_MIN_BYTES = 1024  # of a validation split that is cut from one of several documents
_REACH = 4096  # characters before and after the wanted cut in which a better one is sought

Labelled = Iterator[tuple[str, Document]]  # documents, each with the name of its split
Read = Callable[[bool], Labelled]  # the argument says whether to warn of skipped records


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents with the split of each, read from their files again at each call of `documents`.

    Attributes:
      num_bytes: bytes of UTF-8 in all documents.
      num_documents: documents of all splits.
    """

    num_bytes: int
    num_documents: int
    _read: Read
    _is_validation: bytearray | None = None  # per document; None: the split is that of its file
    _cut: tuple[int, int] | None = None  # number of a document, and its first validation character

    def documents(self, *, warn: bool = False) -> Labelled:
        """Yields (split, document); `warn` prints how many records were skipped."""
        is_validation = iter(self._is_validation or ())
        number_cut, place = self._cut or (-1, 0)
        for number, (split_of_file, document) in enumerate(self._read(warn)):
            if number == number_cut:
                next(is_validation, None)
                yield SPLITS[0], Document(partial(_slice, document, 0, place))
                yield SPLITS[1], Document(partial(_slice, document, place, None))
            elif self._is_validation is None:
                yield split_of_file, document
            elif (index := next(is_validation, None)) is None:
                raise DataError("prepare: the inputs change while they are read; prepare again.")
            else:
                yield SPLITS[index], document


def survey(read: Read, fraction: float, *, is_named: bool) -> Corpus:
    """Reads all documents once and chooses the split of each.

    The hash of a document decides, so the split depends neither on the order of the documents nor
    on the other documents. If no hash chooses validation, the document whose size is nearest to the
    wanted share becomes the validation split, or only its end if the document is much larger. If
    every hash chooses validation, the largest document is used for training. A single document is
    cut near its end.

    Args:
      read: yields the documents, each with the split that its file was named for.
      fraction: share of the text to set aside, in [0, 1); 0 sets nothing aside.
      is_named: whether files were named for validation; `fraction` is then ignored.

    Raises:
      DataError: if no document holds text, the files named for validation hold none, or a single
        document is too short for two splits.
    """
    is_validation, sizes, splits = _scan(read, 0 if is_named else fraction)
    if (is_named and len(splits) < len(SPLITS)) or not splits:
        files = "validation files" if "train" in splits else "inputs"
        raise DataError(f"prepare: 0 documents of the {files} hold any text; give others.")
    corpus = Corpus(sum(sizes), len(sizes), read)
    if is_named:
        return corpus
    share = fraction * corpus.num_bytes
    if fraction and (len(sizes) == 1 or not any(is_validation)):
        nearest = min(range(len(sizes)), key=lambda i: abs(sizes[i] - share))
        if len(sizes) == 1 or sizes[nearest] > 2 * share >= 2 * _MIN_BYTES:
            _, document = next(itertools.islice(read(False), nearest, None))
            cut = nearest, _place(document, share / sizes[nearest])
            return dataclasses.replace(corpus, _is_validation=is_validation, _cut=cut)
        is_validation[nearest] = True
    elif all(is_validation):
        is_validation[max(range(len(sizes)), key=sizes.__getitem__)] = False
    return dataclasses.replace(corpus, _is_validation=is_validation)


def _scan(read: Read, fraction: float) -> tuple[bytearray, array.array, set[str]]:
    """Returns each document's choice by hash and its bytes of UTF-8, and the splits of files."""
    is_validation, sizes, splits = bytearray(), array.array("q"), set()
    with console.bar("reading", None) as advance:
        for split, document in read(False):
            digest, size = hashlib.sha256(), 0
            for chunk in document.chunks():
                raw = chunk.encode("utf-8")
                size += len(raw)
                if fraction:
                    digest.update(raw)
                advance(len(raw))
            is_validation.append(int.from_bytes(digest.digest()[:8], "big") / 2**64 < fraction)
            sizes.append(size)
            splits.add(split)
    return is_validation, sizes, splits


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
