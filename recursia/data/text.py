"""Decodes bytes as UTF-8, with or without a byte-order mark, and says why others are not text."""

import codecs
import json
from typing import Any

from recursia.errors import DataError

_MARK = codecs.BOM_UTF8
_OTHER_MARKS = {  # longest first: the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LOOK = 64  # first bytes from which an encoding is recognised


class NotTextError(Exception):
    """Says why bytes are not text."""


class Decoder:
    """Decodes the bytes of one file, chunk by chunk, and drops a byte-order mark at its start."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._seen = 0  # bytes given to the decoder

    def decode(self, raw: bytes, *, is_last: bool = False) -> str:
        """Returns the text of the next bytes; an incomplete character is kept for the next call.

        Args:
          raw: the next bytes; at the first call at least three, unless the file has fewer.
          is_last: whether no bytes follow.

        Raises:
          NotTextError: with the first invalid byte, counted from the start of the file.
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
    """Returns the text of all bytes of a file or of a line.

    Raises:
      NotTextError: if they are not UTF-8.
    """
    if raw.isascii() and b"\0" not in raw[:_LOOK]:
        return raw.decode("ascii")
    return Decoder().decode(raw, is_last=True)


def json_object(raw: bytes) -> dict[str, Any]:
    """Returns the JSON object of a line.

    Raises:
      NotTextError: if the line is not UTF-8 or no JSON object.
    """
    try:
        row = json.loads(decode(raw))
    except (ValueError, RecursionError) as error:
        raise NotTextError(f"bad JSON, {' '.join(str(error).split())}") from None
    if not isinstance(row, dict):
        raise NotTextError(f"a JSON {type(row).__name__} where an object is expected")
    return row


def lone_surrogate(text: str) -> int | None:
    """Returns the place of the first lone surrogate, which UTF-8 cannot encode, or None."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def check(text: str) -> None:
    """Refuses lone surrogates, which a command line or JSON gives for bytes that are not text.

    Raises:
      DataError: if the text has one.
    """
    if (place := lone_surrogate(text)) is not None:
        raise DataError(
            f"the text has a lone surrogate, {text[place]!a}, at character {place}: it was no "
            "UTF-8; take it out, or give it as UTF-8"
        )


def _other(raw: bytes) -> str | None:
    """Returns the name of another encoding, by its mark or by a zero in every other byte."""
    for mark, name in _OTHER_MARKS.items():
        if raw.startswith(mark):
            return name
    start = raw[:_LOOK]
    is_zero = [half.count(0) == len(half) > 0 for half in (start[::2], start[1::2])]
    return "UTF-16" if len(start) >= 4 and is_zero[0] != is_zero[1] else None
