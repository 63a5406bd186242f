"""JSON Lines: one JSON value per line, split at line feeds only.

JSON text may contain U+2028 and U+0085, at which `str.splitlines` would split.
"""

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from recursia import buckets, parts
from recursia.errors import ConfigError, StorageError

LONGEST = 1 << 26  # bytes of a line that is read
MOST = 1 << 53  # of a step: larger numbers are no longer exact


def line(value: Any) -> str:
    """Returns a value as one line of JSON, with its line feed."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def strict(value: Any) -> Any:
    """Returns a value whose numbers that are not finite are None, as JSON has none of them."""
    if isinstance(value, dict):
        return {name: strict(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def values(path: pathlib.Path) -> Iterator[Any]:
    """Yields the value of each line of a UTF-8 file; lines that are not JSON are skipped.

    So are lines longer than `LONGEST`, which are not kept in memory. In a bucket, a file may be a
    folder of parts, which are read in order.

    Raises:
      ConfigError: if the file cannot be read.
    """
    try:
        for each in parts.parts(path) if buckets.is_place(path) and path.is_dir() else (path,):
            yield from _values(each)
    except StorageError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def is_step(value: Any) -> bool:
    """Returns whether a value is the number of a step."""
    return type(value) is int and 0 <= value <= MOST


def number(value: Any) -> float | None:
    """Returns a number as a float, also one that is not finite; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file that have a `step`, from 0; none if there is no file."""
    for row in values(path) if path.exists() else ():
        if isinstance(row, dict) and is_step(row.get("step")):
            yield row


def _values(path: pathlib.Path) -> Iterator[Any]:
    with path.open("rb") as file:
        is_start = True
        while raw := file.readline(LONGEST):
            is_whole, is_start = is_start and len(raw) < LONGEST, raw.endswith(b"\n")
            if not is_whole:
                continue
            try:
                yield json.loads(raw.decode("utf-8", errors="replace"))
            except (ValueError, RecursionError):
                continue
