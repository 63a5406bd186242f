"""Rows of task files: JSON Lines, each line checked as it is read."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from recursia.data import files
from recursia.data import text as text_lib
from recursia.errors import DataError

Row = dict[str, Any]
_LINE = 1 << 26  # most bytes of a line, since a line is read into memory
CHOICES = ("query", "choices", "gold")  # which of some continuations follows the query
CONTEXTS = ("contexts", "target", "gold")  # after which of some contexts the target follows
TARGET = ("query", "target")  # whether the target is what follows


class WrongRow(Exception):
    """Why a row is none."""


def read(path: str, made: Callable[[Row], Row]) -> Iterator[Row]:
    """Yields what `made` makes of each line that is not blank.

    Args:
      path: a `.jsonl`, `.jsonl.gz` or `.jsonl.zst`.
      made: from a line's object to a row; raises `WrongRow`.

    Raises:
      DataError: at the first broken line, with the file and the line's number, from 1.
    """
    with files.opened(path) as file:
        for number in itertools.count(1):
            if not (raw := file.readline(_LINE + 1)):
                return
            if not raw.strip():
                continue
            try:
                if len(raw) > _LINE:
                    raise WrongRow(f"longer than {_LINE} bytes, the most of a line")
                yield made(text_lib.json_object(raw))
            except (text_lib.NotTextError, WrongRow) as error:
                raise DataError(f"{path}:{number}: {error}; mend or remove the line") from None


def checked(row: Row) -> Row:
    """Returns a row of a task file if it is one.

    Raises:
      WrongRow: if it is not.
    """
    for fields in (CHOICES, CONTEXTS, TARGET):
        if all(name in row for name in fields):
            for name in set(fields) & {"query", "target"}:
                text(row, name)
            if "gold" in fields:
                gold(row, texts(row, "choices" if "choices" in fields else "contexts"))
            return row
    kinds = " or ".join("/".join(fields) for fields in (CHOICES, CONTEXTS, TARGET))
    raise WrongRow(f"has the fields {', '.join(sorted(row)[:8])}, takes {kinds}")


def text(row: Row, name: str) -> str:
    """Returns the text of a field.

    Raises:
      WrongRow: if it is none.
    """
    if not isinstance(value := field(row, name), str):
        raise WrongRow(f"field {name!r} is {type(value).__name__}, takes text")
    if (place := text_lib.lone_surrogate(value)) is not None:
        raise WrongRow(f"field {name!r} has a lone surrogate at character {place}")
    return value


def texts(row: Row, name: str) -> list[str]:
    """Returns the texts of a field, at least one and none of them empty.

    Raises:
      WrongRow: if they are not.
    """
    found = field(row, name)
    if not isinstance(found, list) or not found or not all(isinstance(x, str) for x in found):
        raise WrongRow(f"field {name!r} takes a list of texts")
    if "" in found:
        raise WrongRow(f"field {name!r} has an empty text at place {found.index('')}")
    return found


def gold(row: Row, among: list[str]) -> int:
    """Returns which of some texts is right.

    Raises:
      WrongRow: if it is none of them.
    """
    value = field(row, "gold")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(among):
        raise WrongRow(f"field 'gold' is {value!r}, takes 0 to {len(among) - 1}")
    return value


def field(row: Row, name: str) -> Any:
    """Returns the value of a field.

    Raises:
      WrongRow: if there is none.
    """
    if name not in row:
        raise WrongRow(f"no field {name!r}; it has {', '.join(sorted(row)[:8])}")
    return row[name]
