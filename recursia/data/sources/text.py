"""Plain text: a file is a document."""

import functools
from collections.abc import Iterator

from recursia.data import files
from recursia.data import text as text_lib
from recursia.data.source import BrokenError, Document, Source


class Text(Source):
    """A text file, read in parts, so that it may be larger than memory."""

    SUFFIXES = tuple(".txt" + packed for packed in files.PACKED)

    def records(self, text_field: str) -> Iterator[Document]:
        """Yields the whole file, unless it is empty."""
        parts = functools.partial(_parts, self.path)
        try:
            is_empty = next(parts(), None) is None
        except BrokenError:
            is_empty = False
        if not is_empty:
            yield Document(parts)


def _parts(path: str) -> Iterator[str]:
    decoder = text_lib.Decoder()
    with files.opened(path) as file:
        while True:
            raw = file.read(files.CHUNK)
            try:
                text = decoder.decode(raw, is_last=not raw)
            except text_lib.NotTextError as error:
                raise BrokenError(path, str(error)) from None
            if text:
                yield text
            if not raw:
                return
