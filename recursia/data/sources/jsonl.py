"""JSON Lines: each line is an object, and one of its fields is a document."""

import itertools
from collections.abc import Iterator

from recursia.data import files
from recursia.data import text as text_lib
from recursia.data.source import BrokenError, Document, Source, in_memory

_LINE = 1 << 28  # most bytes of a line, since a line is read into memory


class JsonLines(Source):
    """A file of JSON lines; only line feeds end a line, and blank lines are ignored."""

    SUFFIXES = tuple(".jsonl" + compression for compression in files.COMPRESSIONS)

    def records(self, text_field: str) -> Iterator[Document | BrokenError]:
        """Yields each line that is not blank; `text_field` is the key of its text."""
        with files.opened(self.path) as file:
            for number in itertools.count(1):
                if not (raw := file.readline(_LINE + 1)):
                    return
                where = f"{self.path}:{number}"
                if len(raw) > _LINE:
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(files.CHUNK)
                    yield BrokenError(where, f"longer than {_LINE} bytes, the most of a line")
                elif raw.strip():
                    try:
                        yield in_memory(_parse(raw, text_field))
                    except text_lib.NotTextError as error:
                        yield BrokenError(where, str(error))


def _parse(raw: bytes, text_field: str) -> str:
    """Returns the text of one line."""
    wrong = text_lib.NotTextError
    row = text_lib.json_object(raw)
    if text_field not in row:
        raise wrong(f"no field {text_field!r}, text_field may name one of {sorted(row)[:8]}")
    if not isinstance(row[text_field], str):
        raise wrong(f"field {text_field!r} is {type(row[text_field]).__name__}, not text")
    if (place := text_lib.lone_surrogate(row[text_field])) is not None:  # JSON can escape half one
        raise wrong(f"a lone surrogate at character {place}")
    return row[text_field]
