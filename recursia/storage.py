"""Buckets as libraries reach them: limits of time, what a failure is, and how one is addressed."""

import concurrent.futures
import errno
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from recursia.errors import StorageError

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS = 60.0  # for one operation, with what is tried again
REQUEST_SECONDS = 20.0  # for one request of it
TRIES = 5  # of a request that tensorstore makes
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk
AT_ONCE = 16  # operations on small objects


class Unreachable(OSError, StorageError):
    """A bucket that refuses a request or does not answer it; `strerror` says why."""

    def __init__(self, place: str, reason: str):
        super().__init__(errno.EREMOTEIO, reason)  # pyright: ignore[reportCallIssue]
        self.place = place

    def __str__(self) -> str:
        return f"{self.place}: {self.strerror}"


def at_once(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Returns what a function that asks a bucket returns for each item; asks for several at once.

    Args:
      function: of an item.
      items: in the order of what is returned.
    """
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, items))


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
