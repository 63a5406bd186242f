"""Places in buckets, gs:// and s3://: what names one."""

import os
import pathlib
from typing import Any

from recursia.errors import ConfigError

PREFIXES = ("gs://", "s3://")


def is_place(path: Any) -> bool:
    """Returns whether a path, or its text, is a place in a bucket."""
    return str(path).startswith(PREFIXES)


def path(text: str | os.PathLike[str]) -> Any:
    """Returns a path on disk, or one in a bucket that is used as a `pathlib.Path`.

    Raises:
      ConfigError: if it is of a bucket, but of no folder in one, or lacks a colon or a slash, or if
        it is of another protocol.
    """
    is_url = str(text).startswith(("gs:", "s3:", "gs//", "s3//")) or "://" in str(text)
    if is_url and not is_place(text):
        raise ConfigError(f"{text}: a bucket is written gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
    if not is_place(text):
        return pathlib.Path(text)
    scheme, _, rest = str(text).partition("://")
    names = rest.rstrip("/").split("/")
    if len(names) < 2 or {"", ".", ".."} & {*names}:
        raise ConfigError(f"{text}: takes {scheme}://BUCKET/FOLDER")
    from recursia import objects

    return objects.BucketPath(f"{scheme}://{'/'.join(names)}")
