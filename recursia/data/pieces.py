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
    around it unchanged. Where the tokenizer puts a space before a text, the space at a cut may be
    left out for that, and the pieces are that much shorter than the text. Where no cut in the
    second half of PIECE characters is harmless, as inside a word that is longer than that, the text
    is cut after PIECE characters all the same.

    Args:
      parts: a text, in parts of any length.
      split: what must stay equal, such as the words or ids of a text.
      starts: where the words of a text start, for a text without white space and punctuation.
    """
    rest = ""
    for part in parts:
        rest, start = rest + part, 0
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
    """Returns where a piece ends, from half of PIECE to PIECE, and where the next one starts."""

    def harmless(first: int, place: int) -> tuple[int, int] | None:
        before, after = text[first:place], text[place : place + LOOK]
        whole, begun = [*split(before + after)], [*split(before)]
        if [*begun, *split(after)] == whole:
            return place, place
        if after[0] == " " and [*begun, *split(after[1:])] == whole:
            return place, place + 1
        return None

    for pattern in _PLACES:
        found = [place.start() for place in pattern.finditer(text, PIECE // 2, PIECE)]
        for place in reversed(found[-_TRIES:]):
            if cut := harmless(place - LOOK, place):
                return cut
    words = [0, *(start for start in starts(text) if 0 < start <= PIECE)]
    for place in reversed(words[1:][-_TRIES:]):
        first = next(start for start in reversed(words) if start <= max(place - LOOK, 0))
        if place >= PIECE // 2 and (cut := harmless(first, place)):
            return cut
    return PIECE, PIECE
