"""Places in buckets, gs:// and s3://, as paths; every request for one has an end.

Paths are those of etils, which orbax takes, over fsspec. What a bucket refuses or does not answer is
an `Unreachable`. A folder is there while an object lies below it. Objects are written whole or not
at all, and are never appended to or renamed.
"""

import errno
import functools
import io
import os
import pathlib
import types
from collections.abc import Iterator
from typing import Any

from etils.epath import gpath

from recursia.errors import ConfigError, StorageError

PREFIXES = ("gs://", "s3://")
EXTRA = "pip install 'recursia[bucket]'"
SECONDS = 60.0  # for one operation, with what is tried again
REQUEST_SECONDS = 20.0  # for one request of it
TRIES = 5  # of a request that tensorstore makes
BLOCK = 1 << 23  # bytes of a file that are read at once
_CREDENTIALS = {
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
}
_DENIED = ("forbidden", "access denied", "accessdenied", "credentials", "anonymous", "unauthorized")


class Unreachable(OSError, StorageError):
    """A bucket that refuses a request or does not answer it; `strerror` says why."""

    def __init__(self, place: str, reason: str):
        super().__init__(errno.EREMOTEIO, reason)
        self.place = place

    def __str__(self) -> str:
        return f"{self.place}: {self.strerror}"


def is_place(text: Any) -> bool:
    """Returns whether a path, or its text, is a place in a bucket."""
    return isinstance(text, BucketPath) or str(text).startswith(PREFIXES)


def path(text: str | os.PathLike[str]) -> Any:
    """Returns a path on disk or in a bucket; typed as any, since it is used as `pathlib.Path`.

    Raises:
      ConfigError: for the place of a bucket that cannot be one.
    """
    if not is_place(text):
        return pathlib.Path(text)
    scheme, _, rest = os.fspath(text).partition("://")
    names = rest.rstrip("/").split("/")
    if "" in names or {".", ".."} & {*names}:
        raise ConfigError(f"{os.fspath(text)}: takes {scheme}://BUCKET/FOLDER")
    return BucketPath(f"{scheme}://{'/'.join(names)}")


class BucketPath(gpath.PosixGPath):
    """A path in a bucket, with what the code asks of `pathlib.Path`."""

    @property
    def scheme(self) -> str:
        """The protocol: "gs" or "s3"."""
        return self.parts[1]

    def _ask(self, operation: str, *given: Any, **how: Any) -> Any:
        return ask(self.scheme, str(self), operation, *given, **how)

    def _info(self) -> dict[str, Any] | None:
        try:
            return self._ask("info", str(self))
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        """Returns whether an object is there, or one below it."""
        return self._info() is not None

    def is_file(self) -> bool:
        """Returns whether an object is there."""
        return (self._info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """Returns whether an object is below this place."""
        return (self._info() or {}).get("type") == "directory"

    def stat(self) -> Any:
        """Returns its bytes `st_size` and the time `st_mtime` of its last change, if it has one."""
        found = self._ask("info", str(self))
        changed = found.get("LastModified") or found.get("mtime")
        seconds = changed.timestamp() if changed is not None else 0.0
        return types.SimpleNamespace(st_size=found.get("size") or 0, st_mtime=seconds)

    def iterdir(self) -> Iterator["BucketPath"]:
        """Yields what is directly below, in order."""
        names = {
            each.rstrip("/").rpartition("/")[2] for each in self._ask("ls", str(self), detail=False)
        }
        yield from (self / name for name in sorted(names - {self.name}))

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        """Yields every object below whose name fits a pattern."""
        for found in sorted(self._ask("find", str(self))):
            each = BucketPath(f"{self.scheme}://{found}")
            if each.match(pattern):
                yield each

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Yields what is directly below and fits a pattern."""
        yield from (each for each in self.iterdir() if each.match(pattern))

    def absolute(self) -> "BucketPath":
        """Returns this path."""
        return self

    resolve = expanduser = absolute

    def mkdir(self, mode: Any = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: what is written below makes the folder."""

    def open(self, mode: str = "r", **how: Any) -> Any:
        """Opens an object for reading."""
        if mode not in ("r", "rb"):
            raise io.UnsupportedOperation(f"{self}: {mode}")
        size = self.stat().st_size
        file = io.BufferedReader(_Blocks(self, size), BLOCK)
        return (
            file if mode == "rb" else io.TextIOWrapper(file, encoding=how.get("encoding", "utf-8"))
        )

    def read_bytes(self) -> bytes:
        """Returns an object whole."""
        return self._ask("cat_file", str(self))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Returns an object whole, decoded."""
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, data: bytes, is_new: bool = False) -> int:
        """Writes an object whole; raises FileExistsError if it is there and shall be new."""
        self._ask("pipe_file", str(self), bytes(data), mode="create" if is_new else "overwrite")
        return len(data)

    def write_text(self, data: str, encoding: str = "utf-8", **_: Any) -> int:
        """Writes an object whole, encoded."""
        return self.write_bytes(data.encode(encoding))

    def touch(self, mode: int = 0, exist_ok: bool = True) -> None:
        """Writes an object of a byte."""
        self.write_bytes(b"\n")

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes an object."""
        try:
            self._ask("rm_file", str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self, missing_ok: bool = False) -> None:
        """Deletes every object below, in order of their names."""
        for each in list(self.rglob("*")):
            each.unlink(missing_ok=True)

    def copy(self, dst: Any, overwrite: bool = False) -> "BucketPath":
        """Copies an object within its bucket or between two."""
        self._ask("cp_file", str(self), str(dst))
        return BucketPath(dst)


class _Blocks(io.RawIOBase):
    """The bytes of an object, read in blocks."""

    def __init__(self, place: BucketPath, size: int):
        super().__init__()
        self._place, self._size, self._at = place, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if self._at >= end:
            return 0
        read = self._place._ask("cat_file", str(self._place), start=self._at, end=end)
        buffer[: len(read)] = read
        self._at += len(read)
        return len(read)


def ask(scheme: str, place: str, operation: str, *given: Any, **how: Any) -> Any:
    """Returns what an asynchronous operation of fsspec returns.

    Args:
      scheme: "gs" or "s3".
      place: for the message.
      operation: its name, such as "cat_file".
      *given: its arguments.
      **how: its arguments by name.

    Raises:
      FileNotFoundError, FileExistsError: as on disk.
      Unreachable: for any other failure.
    """
    from fsspec import asyn

    files = filesystem(scheme)
    try:
        return asyn.sync(
            files.loop, getattr(files, f"_{operation}"), *given, timeout=SECONDS, **how
        )
    except (FileNotFoundError, FileExistsError) as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else "is there already"
        raise type(error)(error.errno or errno.ENOENT, why, place) from None
    except Exception as error:  # each library has its own kinds
        raise Unreachable(place, reason(scheme, error)) from None


def reason(scheme: str, error: Exception) -> str:
    """Returns in a line why a bucket could not be reached, and what helps."""
    if isinstance(error, TimeoutError):
        return f"no answer within {SECONDS:.0f} s"
    text = " ".join(str(error).split())[:200] or type(error).__name__
    is_denied = isinstance(error, PermissionError) or any(w in text.lower() for w in _DENIED)
    return f"{text}; {_CREDENTIALS[scheme]}" if is_denied else text


@functools.cache
def filesystem(scheme: str) -> Any:
    """Returns fsspec's file system of a protocol, with limits of time and without a cache.

    Raises:
      ConfigError: if its package is missing.
    """
    import fsspec
    from fsspec.config import conf

    name = {"gs": "gcs", "s3": "s3"}[scheme]
    limits = {"connect_timeout": REQUEST_SECONDS, "read_timeout": REQUEST_SECONDS}
    if scheme == "s3":
        how: dict[str, Any] = {"config_kwargs": {**limits, "retries": {"total_max_attempts": 1}}}
    else:
        how = {"requests_timeout": REQUEST_SECONDS}
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    conf[name] = {"use_listings_cache": False, **how}  # for orbax, which opens its own
    try:
        return fsspec.filesystem(name)
    except ImportError as error:
        raise ConfigError(f"{scheme}://: {error.name or error} is missing; {EXTRA}") from None
    except Exception as error:
        raise Unreachable(f"{scheme}://", reason(scheme, error)) from None


def kvstore(place: str) -> dict[str, Any]:
    """Returns how tensorstore addresses a place, with limits to what it tries again."""
    scheme, _, rest = place.partition("://")
    bucket, _, below = rest.partition("/")
    os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", f"{REQUEST_SECONDS:.0f}")
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", f"{REQUEST_SECONDS:.0f}")
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    retries = {"max_retries": TRIES, "initial_delay": "500ms", "max_delay": "8s"}
    found = {"bucket": bucket, "path": below}
    if scheme == "gs":
        return {"driver": "gcs", **found, "gcs_request_retries": retries}
    found |= {"driver": "s3", "s3_request_retries": retries}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        found["aws_credentials"] = {"type": "environment"}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        found |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    return found
