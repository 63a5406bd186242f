"""Objects of buckets as paths: those of etils, which orbax takes, over fsspec.

A folder is there while an object lies below it. Objects are written whole or not at all, and are
never appended to. Whatever a bucket refuses or does not answer in time is an `Unreachable`.
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

from recursia import storage
from recursia.errors import ConfigError
from recursia.storage import Unreachable

BLOCK = 1 << 23  # bytes of an object that are read at once
LEAST_SPEED = 1 << 27  # bytes in `storage.SECONDS`, below which an upload counts as failed
TRIED = {"mode": "standard", "total_max_attempts": 5}  # as botocore tries a request again
_CREDENTIALS = {
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
}
_DENIED = ("forbidden", "access denied", "accessdenied", "credentials", "anonymous", "unauthorized")


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
        """Returns `st_size` in bytes, and `st_mtime`: of a folder, the latest below it."""
        found = self._ask("info", str(self))
        if found.get("type") == "directory":
            below = self._ask("find", str(self), detail=True).values()
            return types.SimpleNamespace(st_size=0, st_mtime=max(map(_changed, below), default=0.0))
        return types.SimpleNamespace(st_size=found["size"], st_mtime=_changed(found))

    def iterdir(self) -> Iterator["BucketPath"]:
        """Yields what is directly below, in order; nothing if nothing is."""
        try:
            found = self._ask("ls", str(self), detail=False)
        except FileNotFoundError:
            return
        names = {each.rstrip("/").rpartition("/")[2] for each in found}
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

    def absolute(self) -> Any:
        """Returns this path."""
        return self

    def resolve(self, strict: bool = False) -> Any:
        """Returns this path."""
        return self

    def expanduser(self) -> Any:
        """Returns this path."""
        return self

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

    def upload(self, file: pathlib.Path) -> None:
        """Writes an object whole, with the bytes of a file on disk."""
        limit = storage.SECONDS * (1 + file.stat().st_size // LEAST_SPEED)
        self._ask("put_file", str(file), str(self), seconds=limit)

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
        return type(self)(dst)

    def replace(self, target: Any) -> "BucketPath":
        """Copies an object to another place, at once or not at all, and deletes it here."""
        copied = self.copy(target)
        self.unlink(missing_ok=True)
        return copied


def _changed(info: dict[str, Any]) -> float:
    """Returns when an object was written, in seconds since 1970."""
    found: Any = info.get("LastModified") or info.get("mtime")
    return found.timestamp() if hasattr(found, "timestamp") else 0.0


class _Blocks(io.RawIOBase):
    """The bytes of an object, read in blocks."""

    def __init__(self, place: BucketPath, size: int):
        super().__init__()
        self._place, self._size, self._at = place, size, 0

    def readable(self) -> bool:
        return True

    def readall(self) -> bytes:
        """Returns the rest; by itself it would come in blocks of a few kB."""
        found = bytearray()
        while block := self.read(BLOCK):
            found += block
        return bytes(found)

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if self._at >= end:
            return 0
        read = self._place._ask("cat_file", str(self._place), start=self._at, end=end)
        buffer[: len(read)] = read
        self._at += len(read)
        return len(read)


def ask(
    scheme: str, place: str, operation: str, *given: Any, seconds: float | None = None, **how: Any
) -> Any:
    """Returns what an asynchronous operation of fsspec returns.

    Args:
      scheme: "gs" or "s3".
      place: for the message.
      operation: its name, such as "cat_file".
      *given: its arguments.
      seconds: after which it counts as failed; None takes `storage.SECONDS`.
      **how: its arguments by name.

    Raises:
      FileNotFoundError, FileExistsError: as on disk.
      Unreachable: for any other failure.
    """
    from fsspec import asyn

    files, limit = filesystem(scheme), seconds or storage.SECONDS
    try:
        return asyn.sync(files.loop, getattr(files, f"_{operation}"), *given, timeout=limit, **how)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place) from None
    except FileNotFoundError:
        if operation == "pipe_file":
            raise Unreachable(place, "there is no such bucket") from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place) from None
    except Exception as error:  # each library has its own kinds
        raise Unreachable(place, reason(scheme, error)) from None


def reason(scheme: str, error: Exception) -> str:
    """Returns in a line why a bucket could not be reached, and what helps."""
    if isinstance(error, TimeoutError):
        return f"no answer within {storage.SECONDS:.0f} s"
    said = getattr(error, "strerror", None) or error
    text = " ".join(str(said).split())[:200] or type(error).__name__
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
    limits = {"connect_timeout": storage.REQUEST_SECONDS, "read_timeout": storage.REQUEST_SECONDS}
    if scheme == "s3":
        how: dict[str, Any] = {"config_kwargs": {**limits, "retries": TRIED}}
    else:
        how = {"requests_timeout": storage.REQUEST_SECONDS}
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    conf[name] = {"use_listings_cache": False, **how}  # for orbax, which opens its own
    try:
        return fsspec.filesystem(name)
    except ImportError as error:
        raise ConfigError(
            f"{scheme}://: {error.name or error} is missing; pip install 'recursia[bucket]'"
        ) from None
    except Exception as error:
        raise Unreachable(f"{scheme}://", reason(scheme, error)) from None
