"""Apache Parquet: each row is a document, its text in one column (needs `recursia[parquet]`)."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from recursia import buckets, objects
from recursia.data import files
from recursia.data.source import BrokenError, Document, Source, in_memory
from recursia.errors import DataError

_ROWS = 256  # rows decoded at once


@dataclasses.dataclass(frozen=True)
class Parquet(Source):
    """A table; one of its columns is read, one row group at a time.

    Attributes:
      first: number of the first row group.
      last: number of the row group before which to end; None reads to the end.
    """

    SUFFIXES = (".parquet",)
    first: int = 0
    last: int | None = None

    def __post_init__(self):
        _library(self.path)  # fails here, before a large file is hashed

    def parts(self, num_bytes: int) -> tuple[Source, ...]:
        """Returns runs of the row groups."""
        if self.size < 2 * num_bytes:
            return (self,)
        with _opened(self.path) as table:
            groups = range(table.num_row_groups)
            sizes = [table.metadata.row_group(group).total_byte_size for group in groups]
        shares = [end // num_bytes for end in itertools.accumulate(sizes[:-1], initial=0)]
        runs = [[*run] for _, run in itertools.groupby(groups, shares.__getitem__)]
        return tuple(Parquet(self.path, run[0], run[-1] + 1) for run in runs) or (self,)

    def records(self, text_field: str) -> Iterator[Document | BrokenError]:
        """Yields each row; `text_field` is the column of texts."""
        with _opened(self.path) as table:
            self._check(table.schema_arrow, text_field)
            before = range(self.first)
            rows = (table.metadata.row_group(group).num_rows for group in before)
            number = itertools.count(1 + sum(rows))
            last = table.num_row_groups if self.last is None else self.last
            for group in range(self.first, last):
                for rows in table.iter_batches(_ROWS, [group], [text_field], use_threads=False):
                    for value in rows.column(0):
                        yield _record(value, f"{self.path}:{next(number)}")

    def _check(self, schema: Any, text_field: str) -> None:
        """Refuses a table that has not exactly one column of that name, or no text in it."""
        if (count := schema.names.count(text_field)) != 1:
            raise DataError(
                f"{self.path}: {count} columns are named {text_field!r}; text_field may name one "
                f"of {sorted(schema.names)[:8]}."
            )
        types = _library(self.path).types
        kind = column = schema.field(text_field).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        of_text = types.is_string, types.is_large_string, types.is_string_view
        if not any(is_kind(kind) for is_kind in of_text):
            raise DataError(
                f"{self.path}: column {text_field!r} is {column}, not text; text_field may name "
                "another, or write it as string."
            )


def _record(value: Any, where: str) -> Document | BrokenError:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        return BrokenError(where, f"invalid UTF-8 at byte {error.start}")
    return BrokenError(where, "null, not text") if text is None else in_memory(text)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    library = _library(path)
    how = {"buffer_size": files.CHUNK, "pre_buffer": False, "page_checksum_verification": True}
    try:
        from_bucket = lambda: objects.filesystem(path.partition("://")[0]).open(path, "rb")
        where = from_bucket() if buckets.is_place(path) else path
        with library.parquet.ParquetFile(where, **how) as table:
            yield table
    except (OSError, UnicodeDecodeError, library.ArrowException) as error:
        raise files.unreadable(path, error) from None


def _library(path: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path}: reading it needs pyarrow; pip install 'recursia[parquet]'."
        ) from None
    return pyarrow
