"""A file that is one JSON value, read in bounded memory."""

import json
import pathlib
from typing import Any

LONGEST = 1 << 24  # bytes of a file that is read


def read(path: pathlib.Path, longest: int = LONGEST) -> Any:
    """Returns the value of a file on disk or in a bucket.

    Args:
      path: of the file.
      longest: bytes of it, at most.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is longer, no UTF-8 or no JSON, or nested too deep.
    """
    if (size := path.stat().st_size) > longest:
        raise ValueError(f"it has {size} bytes, at most {longest} are read")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
