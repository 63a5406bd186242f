"""Cuts a long text into pieces that a tokenizer encodes to the same ids as the whole text.

A tokenizer library holds some hundred bytes for each character of the text it encodes, and
learning a vocabulary takes time quadratic in the length of a word. So a text is encoded in pieces,
cut where the tokenizer's own pre-tokenizer would cut.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

PIECE = 1 << 14  # characters of a piece
LOOK = 128  # characters before and after a cut that decide whether it is harmless
_TRIES = 8  # places that each pattern below offers

# Where nearly every pre-tokenizer cuts: before white space, and before and after punctuation.
_PLACES = tuple(
    map(re.compile, (r"(?<=\S)(?=\s)", r"(?<=\w)(?=[^\w\s])|(?<=[^\w\s])(?=\w)|(?<=\s)(?=\S)"))
)


def pieces(
    chunks: Iterable[str],
    split: Callable[[str], Sequence],
    starts: Callable[[str], Sequence[int]],
) -> Iterator[str]:
    """Yields a text in pieces of at most PIECE + LOOK characters.

    The pieces do not depend on the chunks. Each cut leaves the result of `split` on the text around
    it unchanged. A tokenizer may put a space before each text it encodes: a space at a cut is then
    left out, and the pieces are one character shorter than the text. If no cut in the second half
    of a piece is harmless, as inside a very long word, the piece ends after PIECE characters.

    Args:
      chunks: the text, in chunks of any length.
      split: gives what a cut must not change, such as the words or ids of a text.
      starts: gives the places where words start, for a text without white space and punctuation.
    """
    rest = ""
    for chunk in chunks:
        rest, start = rest + chunk, 0
        while len(rest) - start > PIECE + LOOK:
            end, after = _cut(rest[start : start + PIECE + LOOK], split, starts)
            yield rest[start : start + end]
            start += after
        rest = rest[start:]
    if rest:
        yield rest


def _cut(
    text: str, split: Callable[[str], Sequence], starts: Callable[[str], Sequence]
) -> tuple[int, int]:
    """Returns where a piece ends, between PIECE / 2 and PIECE, and where the next one starts."""

    def harmless(first: int, place: int) -> tuple[int, int] | None:
        before, after = text[first:place], text[place : place + LOOK]
        uncut, left = [*split(before + after)], [*split(before)]
        if [*left, *split(after)] == uncut:
            return place, place
        if after[0] == " " and [*left, *split(after[1:])] == uncut:
            return place, place + 1
        return None

    for pattern in _PLACES:
        places = [match.start() for match in pattern.finditer(text, PIECE // 2, PIECE)]
        for place in reversed(places[-_TRIES:]):
            if cut := harmless(place - LOOK, place):
                return cut
    words = [0, *(start for start in starts(text) if 0 < start <= PIECE)]
    for place in reversed(words[1:][-_TRIES:]):
        first = next(start for start in reversed(words) if start <= max(place - LOOK, 0))
        if place >= PIECE // 2 and (cut := harmless(first, place)):
            return cut
    return PIECE, PIECE
