"""JSON Lines: one value a line, split at line feeds only.

JSON leaves U+2028, U+0085 and others as they are, which `str.splitlines` takes for line ends.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any


def line(value: Any) -> str:
    """Returns a value as one line, with its line feed."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def values(path: pathlib.Path) -> Iterator[Any]:
    """Yields the value of each line; one that is no JSON is left out.

    Args:
      path: a file of UTF-8.
    """
    for each in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
        try:
            yield json.loads(each)
        except (ValueError, RecursionError):
            continue
