"""A long text cut into short ones that give a tokenizer the same ids.

A tokenizer library holds some hundred bytes for every character of a text that it is at, and
learning takes time with the square of a word. So texts are fed to it in pieces, cut where its own
pre-tokenizer would cut.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

PIECE = 1 << 14  # characters of a piece
LOOK = 128  # characters on either side that say whether a cut is harmless
_TRIES = 8  # places of a kind that are tried

# Where nearly every pre-tokenizer cuts: before white space, and before and after punctuation.
_PLACES = tuple(
    map(re.compile, (r"(?<=\S)(?=\s)", r"(?<=\w)(?=[^\w\s])|(?<=[^\w\s])(?=\w)|(?<=\s)(?=\S)"))
)


def pieces(
    parts: Iterable[str],
    split: Callable[[str], Sequence],
    starts: Callable[[str], Sequence[int]],
) -> Iterator[str]:
    """Yields the text of `parts` in pieces of at most PIECE + LOOK characters.

    The pieces do not depend on how the text was parted. Each cut leaves what `split` gives the text
    around it unchanged. Where no cut in the second half of PIECE characters does, as inside a word
    that is longer than that, the text is cut after PIECE characters all the same.

    Args:
      parts: a text, in parts of any length.
      split: what must stay equal, such as the words or ids of a text.
      starts: where the words of a text start, for a text without white space and punctuation.
    """
    rest = ""
    for part in parts:
        rest, start = rest + part, 0
        while len(rest) - start > PIECE + LOOK:
            end = start + _cut(rest[start : start + PIECE + LOOK], split, starts)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _cut(text: str, split: Callable[[str], Sequence], starts: Callable[[str], Sequence]) -> int:
    """Returns where to cut, from half of PIECE to PIECE."""

    def is_harmless(first: int, place: int) -> bool:
        before, after = text[first:place], text[place : place + LOOK]
        return [*split(before), *split(after)] == [*split(before + after)]

    for pattern in _PLACES:
        found = [place.start() for place in pattern.finditer(text, PIECE // 2, PIECE)]
        for place in reversed(found[-_TRIES:]):
            if is_harmless(place - LOOK, place):
                return place
    words = [0, *(start for start in starts(text) if 0 < start <= PIECE)]
    for number in range(len(words) - 1, max(len(words) - 1 - _TRIES, 0), -1):
        place = words[number]
        if place < PIECE // 2:
            break
        first = next(start for start in reversed(words) if start <= place - LOOK)
        if is_harmless(first, place):
            return place
    return PIECE
