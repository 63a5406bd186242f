"""An unfinished preparation: a folder on disk, `OUTPUT.partial`, from which it goes on.

It holds `request.json`, the tokenizer, and a spool for each unit that was made. A unit's folder
appears under its name only when it is complete. The locks are the operating system's: they end with
their process, whatever becomes of it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

from recursia import jsonfile
from recursia.data import held_out, packing
from recursia.data import tokenizer as tokenizer_lib
from recursia.data.request import Request, differing
from recursia.data.spool import FILES
from recursia.data.tokenizer import Tokenizer
from recursia.data.units import Advance, Found, Unit, units
from recursia.errors import DataError

WHOLE = "whole"  # folder in which the units are joined
_LOCK, _REQUEST, _TOKENIZER, _UNITS = "lock", "request.json", "tokenizer", "units"
_FOUND = "found.json"  # of a unit: what it holds of each file, and the digests of its own
_LONGEST = 1 << 28  # bytes of what is read here


class Partial:
    """The folder of one request, while this process holds its lock.

    Attributes:
      output: the folder that is to be made.
      path: the folder of the unfinished preparation.
      asked: the request.
      unit_bytes: bytes of the files of a unit, see `units.units`.
      units: the units of the request.
    """

    def __init__(self, output: str, path: str, asked: Request, unit_bytes: int):
        """Names the folder; nothing is written yet."""
        self.output, self.path, self.asked = output, path, asked
        self.unit_bytes, self.units = unit_bytes, units(asked.files, unit_bytes)

    @contextlib.contextmanager
    def held(self, options: dict[str, Any], part: tuple[int, int] | None) -> Iterator[None]:
        """Holds the folder, which is made if it is absent.

        It is removed again if the block raises before there is anything to go on from.

        Args:
          options: `Request.recorded` of the request.
          part: number of this part and how many there are; parts hold the folder together, each by
            itself what it makes. None holds it alone.

        Raises:
          DataError: if another process holds it, or it belongs to another request.
        """
        self._check_entries()
        new_parents = packing.new_parents(self.path)
        with contextlib.ExitStack() as locks:
            self._lock(locks, _LOCK, is_shared=part is not None)
            if part is not None:
                self._lock(locks, f"part_{part[0]}_of_{part[1]}.lock", is_shared=False)
            try:
                self._check(options)
                os.makedirs(self._inside(_UNITS), exist_ok=True)
            except OSError:
                if part is None and not self.has_begun():
                    self.remove()
                    packing.remove_empty(new_parents)
                raise
            if part is None:
                names = os.listdir(self._inside(_UNITS))
                for name in (each for each in names if _is_unfinished(each) or _is_moved(each)):
                    shutil.rmtree(self._inside(os.path.join(_UNITS, name)), ignore_errors=True)
            try:
                yield
            except BaseException:
                if part is None and not self.has_begun():
                    self.remove()
                    packing.remove_empty(new_parents)
                raise

    def _lock(self, locks: contextlib.ExitStack, name: str, *, is_shared: bool) -> None:
        while True:
            os.makedirs(self.path, exist_ok=True)
            path = self._inside(name)
            with contextlib.suppress(FileNotFoundError):  # removed by a process that ends just now
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
                    fcntl.flock(file, kind | fcntl.LOCK_NB)
                    if os.path.samestat(os.fstat(file), os.stat(path)):
                        locks.callback(os.close, file)
                        return
                except BlockingIOError:
                    os.close(file)
                    raise DataError(
                        f"{self.path}: another process prepares there; wait for its end, or give "
                        "another output."
                    ) from None
                except BaseException:
                    os.close(file)
                    raise
                os.close(file)

    def _check_entries(self) -> None:
        """Refuses a folder that holds what is not written here."""
        names = os.listdir(self.path) if os.path.isdir(self.path) else ()
        if others := [name for name in names if not _is_ours(name)]:
            raise DataError(
                f"{self.path}: holds {len(others)} entries that are no unfinished work, such as "
                f"{min(others)}; give another folder."
            )

    def _check(self, options: dict[str, Any]) -> None:
        """Compares the request with that of the folder, or writes it there."""
        sources = [
            {"split": split, "name": file.name, "stamp": [*file.stamp]}
            for split, files in self.asked.files.items()
            for file in files
        ]
        mine = {"options": options | {"unit_bytes": self.unit_bytes}, "sources": sources}
        path = self._inside(_REQUEST)
        if not os.path.lexists(path) and not self.has_begun():
            _write(new := f"{path}.{uuid.uuid4().hex[:8]}", mine)
            os.replace(new, path)
            return
        try:
            theirs = jsonfile.read(pathlib.Path(path), _LONGEST)
            if not isinstance(theirs, dict):
                raise ValueError("it is no object")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); remove "
                f"{self.path} to begin anew."
            ) from None
        if differences := differing(theirs, mine):
            raise DataError(
                f"{self.path}: holds what was begun with other {', '.join(differences)}; give the "
                "same again to go on with it, or remove it to begin anew."
            )

    def has_begun(self) -> bool:
        """Returns whether there is something to go on from: a unit, or a learned tokenizer."""
        is_learned = self.asked.options.tokenizer.startswith("bpe:")
        units = self._inside(_UNITS)
        made = os.path.isdir(units) and not all(map(_is_unfinished, os.listdir(units)))
        return made or (is_learned and self.tokenizer() is not None)

    def remove(self) -> None:
        """Removes what was written here, the lock last, and the folder if it is empty then."""
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(self.path), key=lambda e: e.name == _LOCK):
                if not _is_ours(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
            os.rmdir(self.path)

    def tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer that was kept, or None."""
        folder = self._inside(_TOKENIZER)
        return tokenizer_lib.load(folder) if os.path.isdir(folder) else None

    def keep(self, tokenizer: Tokenizer) -> None:
        """Keeps the tokenizer, for this process and others that make units."""
        with self._new(_TOKENIZER) as folder:
            tokenizer.save(folder)

    def spool(self, unit: Unit, moved: held_out.Moved | None = None) -> str:
        """Returns the folder of a unit's spool, which may not exist yet."""
        name = f"{unit.number:06d}"
        if moved is not None:
            name += f"-{moved.number}-{'whole' if moved.cut is None else moved.cut}"
        return os.path.join(self._inside(_UNITS), name)

    def make(
        self,
        unit: Unit,
        tokenizer: Tokenizer,
        advance: Advance,
        moved: held_out.Moved | None = None,
    ) -> None:
        """Makes a unit, unless it is there; see `Unit.make`."""
        path = self.spool(unit, moved)
        if os.path.isdir(path):
            return
        rule = held_out.Rule(self.asked.fraction, moved)
        with self._new(os.path.join(_UNITS, os.path.basename(path))) as folder:
            found = unit.make(folder, self.asked, rule, tokenizer, advance)
            made = {"found": found, "digests": _digests(folder), "tokenizer": tokenizer.fingerprint}
            _write(os.path.join(folder, _FOUND), made)

    def is_made(self, unit: Unit) -> bool:
        """Returns whether a unit is made."""
        return os.path.isdir(self.spool(unit))

    def found(self, unit: Unit) -> list[Found]:
        """Returns what a unit that was made holds of each file."""
        return self._made(unit)["found"]

    def is_whole(self, unit: Unit, tokenizer: Tokenizer) -> bool:
        """Returns whether the files of a unit are as they were made.

        Raises:
          DataError: if another tokenizer made it.
          OSError: if one cannot be read.
        """
        try:
            made = self._made(unit)
            if made["tokenizer"] != tokenizer.fingerprint:
                raise DataError(
                    f"{self.spool(unit)}: was made with another tokenizer than {self.path} holds; "
                    f"remove {self.path} to begin anew."
                )
            return made["digests"] == _digests(self.spool(unit))
        except DataError:
            raise
        except (FileNotFoundError, IsADirectoryError, ValueError, LookupError, TypeError):
            return False

    def drop(self, unit: Unit) -> None:
        """Takes a unit away, which is to be made anew."""
        os.rename(path := self.spool(unit), new := f"{path}.{uuid.uuid4().hex[:8]}")
        if not os.path.islink(new):
            shutil.rmtree(new, ignore_errors=True)

    def _made(self, unit: Unit) -> Any:
        return jsonfile.read(pathlib.Path(self.spool(unit)) / _FOUND, _LONGEST)

    @contextlib.contextmanager
    def _new(self, name: str) -> Iterator[str]:
        """Makes a folder that appears under its name when the block ends without an error."""
        path = self._inside(name)
        folder = f"{path}.{uuid.uuid4().hex[:8]}"
        os.mkdir(folder)
        try:
            yield folder
            try:
                os.rename(folder, path)
            except OSError:
                if not os.path.isdir(path):  # else another process has made the same
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _inside(self, name: str) -> str:
        return os.path.join(self.path, name)


def _write(path: str, values: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())


def _digests(folder: str) -> dict[str, str]:
    """Returns the sha256 of every file of a spool."""
    found = {}
    for name in FILES:
        with open(os.path.join(folder, name), "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _is_moved(name: str) -> bool:
    """Returns whether the folder is of a unit of which a document was moved: it is made anew."""
    return "-" in name


def _is_unfinished(name: str) -> bool:
    """Returns whether the folder of a unit is one that a killed process left."""
    return "." in name


def _is_ours(name: str) -> bool:
    """Returns whether an entry of the folder is one that is written here."""
    known = (_REQUEST, _TOKENIZER, _UNITS, WHOLE)
    is_lock = name == _LOCK or (name.startswith("part_") and name.endswith(".lock"))
    return is_lock or name in known or name.startswith(tuple(f"{each}." for each in known))
