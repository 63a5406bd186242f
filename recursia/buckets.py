"""Places in buckets, gs:// and s3://: what names one, and how its requests are limited."""

import errno
import os
import pathlib
from typing import Any

from recursia.errors import ConfigError, StorageError

PREFIXES = ("gs://", "s3://")
SECONDS = 60.0  # for one operation, with what is tried again
REQUEST_SECONDS = 20.0  # for one request of it
TRIES = 5  # of a request that tensorstore makes


class Unreachable(OSError, StorageError):
    """A bucket that refuses a request or does not answer it; `strerror` says why."""

    def __init__(self, place: str, reason: str):
        super().__init__(errno.EREMOTEIO, reason)
        self.place = place

    def __str__(self) -> str:
        return f"{self.place}: {self.strerror}"


def is_place(path: Any) -> bool:
    """Returns whether a path, or its text, is a place in a bucket."""
    return str(path).startswith(PREFIXES)


def path(text: str | os.PathLike[str]) -> Any:
    """Returns a path on disk, or one in a bucket that is used as a `pathlib.Path`.

    Raises:
      ConfigError: if it is of a bucket, but of no folder in one.
    """
    if not is_place(text):
        return pathlib.Path(text)
    scheme, _, rest = str(text).partition("://")
    names = rest.rstrip("/").split("/")
    if len(names) < 2 or {"", ".", ".."} & {*names}:
        raise ConfigError(f"{text}: takes {scheme}://BUCKET/FOLDER")
    from recursia import objects

    return objects.BucketPath(f"{scheme}://{'/'.join(names)}")


def kvstore(place: str) -> dict[str, Any]:
    """Returns how tensorstore addresses a place, with limits to its time and its tries."""
    scheme, _, rest = place.partition("://")
    bucket, _, below = rest.partition("/")
    limit = f"{REQUEST_SECONDS:.0f}"
    os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", limit)
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", limit)
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    retries = {"max_retries": TRIES, "initial_delay": "500ms", "max_delay": "8s"}
    found: dict[str, Any] = {"bucket": bucket, "path": below}
    if scheme == "gs":
        return {"driver": "gcs", **found, "gcs_request_retries": retries}
    found |= {"driver": "s3", "s3_request_retries": retries}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # other sources are tried first, and may not answer
        found["aws_credentials"] = {"type": "environment"}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        found |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    return found
