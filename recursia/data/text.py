"""How bytes become text: UTF-8, with or without a byte-order mark, and what is neither."""

import codecs

from recursia.errors import DataError

_MARK = codecs.BOM_UTF8
_OTHERS = {  # longest first: the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LOOK = 64  # first bytes that tell an encoding


class NotTextError(Exception):
    """Why bytes are no text."""


class Decoder:
    """Decodes the bytes of one file, part by part; a byte-order mark at its start is no text."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._seen = 0  # bytes before those that the decoder holds

    def decode(self, raw: bytes, *, is_last: bool = False) -> str:
        """Returns the text of the next bytes; a character cut in two comes with the part after.

        Args:
          raw: the next bytes; the first ones hold the file's first three, if it has them.
          is_last: whether none follow.

        Raises:
          NotTextError: at the first byte that is wrong, counted from the start of the file.
        """
        if not self._seen and (other := _other(raw)):
            raise NotTextError(f"{other}, where UTF-8 is expected")
        skipped = len(_MARK) if not self._seen and raw.startswith(_MARK) else 0
        held = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(raw[skipped:], is_last)
        except UnicodeDecodeError as error:
            at = self._seen + skipped - held + error.start
            raise NotTextError(f"invalid UTF-8 at byte {at}") from None
        self._seen += len(raw)
        return text


def decode(raw: bytes) -> str:
    """Returns the text of a whole file, or of a whole line of one.

    Raises:
      NotTextError: if it is no UTF-8.
    """
    return Decoder().decode(raw, is_last=True)


def lone_surrogate(text: str) -> int | None:
    """Returns where the first half of a surrogate pair is, which no UTF-8 can spell."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def check(text: str) -> None:
    """Refuses half a surrogate pair, which the command line and JSON make of what is no text.

    Raises:
      DataError: if one is there.
    """
    if (place := lone_surrogate(text)) is not None:
        raise DataError(
            f"the text has a lone surrogate, {text[place]!a}, at character {place}: it was no "
            "UTF-8; take it out, or give it as UTF-8"
        )


def _other(raw: bytes) -> str | None:
    """Returns the name of another encoding, by its mark or by a zero in every other byte."""
    for mark, name in _OTHERS.items():
        if raw.startswith(mark):
            return name
    look = raw[:_LOOK]
    zeros = [part.count(0) == len(part) > 0 for part in (look[::2], look[1::2])]
    return "UTF-16" if len(look) >= 4 and zeros[0] != zeros[1] else None
