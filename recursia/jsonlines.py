"""JSON Lines: one JSON value per line, split at line feeds only.

JSON text may contain U+2028 and U+0085, at which `str.splitlines` would split.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any


def line(value: Any) -> str:
    """Returns a value as one line of JSON, with its line feed."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def values(path: pathlib.Path) -> Iterator[Any]:
    """Yields the value of each line of a UTF-8 file; lines that are not JSON are skipped."""
    for text in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
        try:
            yield json.loads(text)
        except (ValueError, RecursionError):
            continue
