"""Data sets of Hugging Face, streamed: each row is a document (needs `recursia[hf]`)."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

from recursia import console
from recursia.data import files
from recursia.data import text as text_lib
from recursia.data.source import BrokenError, Document, Source, in_memory
from recursia.errors import DataError

_PREFIX = "hf:"
_SECONDS = 30.0  # for an answer of the hub
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class HuggingFace(Source):
    """A split of a data set: `hf:NAME[@REVISION][:CONFIG][:SPLIT]`, by default its `train`.

    The name is one of the hub, `OWNER/NAME`, or a folder on disk, which begins with `.` or `/`. Of
    the hub, the commit is looked up at once and becomes part of the path, so that all that is read
    is of one commit.

    Attributes:
      shard: the one of the data set's files to read; None reads all.
      num_shards: its files, if `shard` is given.
      share: bytes that a shard counts for, whatever it has.
    """

    SUFFIXES = (_PREFIX,)
    shard: int | None = None
    num_shards: int = 1
    share: int = 0

    def __post_init__(self):
        library = _library(self.path)  # fails here, before other files are read
        name, revision, config, split = _fields(self.path)
        if _is_folder(name):
            if not os.path.isdir(name):
                raise DataError(f"{self.path}: {name} is no folder; give one, or OWNER/NAME.")
        elif not _COMMIT.fullmatch(revision):
            with _readable(self.path), console.doing(f"looking {self.path} up"):
                found = library.dataset_info(name, revision=revision or None, timeout=_SECONDS)
            revision = found.sha
        named = name + (f"@{revision}" if revision else "")
        path = ":".join(filter(None, (_PREFIX[:-1], named, config, split)))
        object.__setattr__(self, "path", path)

    @property
    def name(self) -> str:
        """The name of the data set with its commit, but no folders of this machine."""
        name, revision, config, split = _fields(self.path)
        name = pathlib.PurePath(name).name if _is_folder(name) else f"{name}@{revision}"
        return ":".join(filter(None, (_PREFIX[:-1], name, config, split)))

    @property
    def real(self) -> str:
        """The path, which names the commit."""
        return self.path

    @property
    def size(self) -> int:
        """Bytes that are counted for it."""
        return self.share

    @property
    def stamp(self) -> tuple[int, int | str]:
        """The bytes of a folder and the last change in it, or the commit."""
        name, revision, _, _ = _fields(self.path)
        if not _is_folder(name):
            return 0, revision
        found = [os.stat(path) for path in _files(name)]
        changed = max((each.st_mtime_ns for each in found), default=0)
        return sum(each.st_size for each in found), changed

    def fingerprint(self, advance: Callable[[float], None]) -> str:
        """Returns the sha256, in hex, of the name with its commit, or of the files of a folder."""
        name, *_ = _fields(self.path)
        if not _is_folder(name):
            return hashlib.sha256(self.name.encode()).hexdigest()
        digests = {}
        for path in _files(name):
            digest = hashlib.sha256()
            with files.plain(path) as file:
                while chunk := file.read(files.CHUNK):
                    digest.update(chunk)
                    advance(len(chunk))
            digests[os.path.relpath(path, name)] = digest.hexdigest()
        return hashlib.sha256(json.dumps([self.name, digests], sort_keys=True).encode()).hexdigest()

    def parts(self, num_bytes: int) -> tuple[Source, ...]:
        """Returns the files of the data set."""
        with _readable(self.path), console.doing(f"looking {self.path} up"):
            count = self._rows().num_shards
        shards = range(count) if count > 1 else ()
        kind = lambda shard: HuggingFace(self.path, shard, count, num_bytes)
        return tuple(map(kind, shards)) or (self,)

    def records(self, text_field: str) -> Iterator[Document | BrokenError]:
        """Yields each row; `text_field` is the column of texts."""
        with _readable(self.path):
            rows = self._rows()
            if self.shard is not None:
                rows = rows.shard(self.num_shards, self.shard)
            where = self.path if self.shard is None else f"{self.path}:shard {self.shard}"
            for number, row in enumerate(rows, 1):
                yield _record(row, text_field, f"{where}:{number}")

    def _rows(self) -> Any:
        name, revision, config, split = _fields(self.path)
        how = {"split": split, "streaming": True, "revision": revision or None}
        return _library(self.path).load_dataset(name, config or None, **how)


def _fields(path: str) -> tuple[str, str, str, str]:
    """Returns name, revision, configuration and split.

    Raises:
      DataError: if there are too many.
    """
    named, *rest = path.removeprefix(_PREFIX).split(":")
    if not named or len(rest) > 2:
        raise DataError(f"{path}: is not hf:NAME[@REVISION][:CONFIG][:SPLIT]; write it so.")
    split = rest[-1] if rest else "train"
    config = rest[0] if len(rest) == 2 else ""
    if _is_folder(named):
        return os.path.expanduser(named), "", config, split
    name, _, revision = named.partition("@")
    return name, revision, config, split


def _is_folder(name: str) -> bool:
    return name.startswith((".", "/", "~"))


def _files(folder: str) -> list[str]:
    """Returns the files below a folder, in order, but for hidden ones."""
    found = sorted(pathlib.Path(folder).rglob("[!.]*"))
    return [str(path) for path in found if path.is_file()]


def _record(row: dict[str, Any], text_field: str, where: str) -> Document | BrokenError:
    if text_field not in row:
        reason = f"no field {text_field!r}, text_field may name one of {sorted(row)[:8]}"
        return BrokenError(where, reason)
    if not isinstance(text := row[text_field], str):
        return BrokenError(where, f"field {text_field!r} is {type(text).__name__}, not text")
    if (place := text_lib.lone_surrogate(text)) is not None:
        return BrokenError(where, f"a lone surrogate at character {place}")
    return in_memory(text)


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turns errors of the libraries, which have no common class but Exception, into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {reason}); check its name, "
            "configuration and split, and the network."
        ) from None


def _library(path: str) -> Any:
    """Returns what loads data sets and what looks them up."""
    try:
        with console.doing("loading the datasets library"):
            import datasets
            import huggingface_hub
    except ImportError:
        raise DataError(f"{path}: reading it needs datasets; pip install 'recursia[hf]'.") from None
    return types.SimpleNamespace(
        load_dataset=datasets.load_dataset, dataset_info=huggingface_hub.HfApi().dataset_info
    )
