"""Plain text: each file is a document."""

import functools
from collections.abc import Iterator

from recursia.data import files
from recursia.data import text as text_lib
from recursia.data.source import BrokenError, Document, Source


class Text(Source):
    """A text file, read in chunks, so that it may be larger than memory."""

    SUFFIXES = tuple(".txt" + compression for compression in files.COMPRESSIONS)

    def records(self, text_field: str) -> Iterator[Document]:
        """Yields one document, or none if the file is empty."""
        chunks = functools.partial(_chunks, self.path)
        try:
            is_empty = next(chunks(), None) is None
        except BrokenError:
            is_empty = False
        if not is_empty:
            yield Document(chunks)


def _chunks(path: str) -> Iterator[str]:
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
