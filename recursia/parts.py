"""Lines in a bucket, where nothing is appended to: a folder of parts instead of a file.

A part is named by its generation and its number in it. Part 0 of a generation holds all lines of
the generations before, so that the newest generation holds all; lines are joined or deleted by
writing a part 0. The last part grows, by being written anew, until it is large enough.
"""

import re
import threading
from typing import Any

from recursia.backlog import Backlog

LARGE = 1 << 20  # bytes of a part, after which the next begins
_NAME = re.compile(r"(\d{6})-(\d{6})\.jsonl")


def parts(path: Any) -> list[Any]:
    """Returns the parts of the newest whole generation, in order."""
    found = {each.name: each for each in path.iterdir()} if path.is_dir() else {}
    names = sorted(name for name in found if _NAME.fullmatch(name))
    newest = max((name[:6] for name in names if name[7:13] == "000000"), default="")
    return [found[name] for name in names if name[:6] == newest]


def rewrite(path: Any, contents: bytes) -> None:
    """Replaces all lines at once; the generation before stays for whoever reads it now."""
    old = parts(path)
    generation = int(old[0].name[:6]) + 1 if old else 1
    (path / _name(generation, 0)).write_bytes(contents)
    for each in path.iterdir():
        if (name := _NAME.fullmatch(each.name)) and int(name[1]) < generation - 1:
            each.unlink(missing_ok=True)


def append(path: Any, line: str) -> None:
    """Adds a line at once."""
    lines = Parts(path)
    lines.write(line)
    lines.send()


class Parts:
    """The end of the lines of a file; what is written is in the bucket once it is sent."""

    def __init__(self, path: Any):
        """Reads the last part."""
        self.path = path
        found = parts(path)
        self._place = found[-1] if found else path / _name(1, 0)
        self._part = self._place.read_bytes() if found else b""
        self._is_sent, self._waiting = bool(found), 0
        self._backlog = Backlog(path)
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Adds a line, to be sent; begins another part if the last is large."""
        with self._lock:
            is_cut = self._part and not self._part.endswith(b"\n")
            if self._is_sent and len(self._part) >= LARGE:
                generation, number = map(int, self._place.stem.split("-"))
                self._place, self._part = self.path / _name(generation, number + 1), b""
            self._part += b"\n" * bool(is_cut and self._part) + line.encode()
            self._is_sent = False
            self._waiting += 1

    def send(self) -> None:
        """Sends what was written; raises OSError if it cannot."""
        with self._lock:
            if not self._is_sent:
                self._place.write_bytes(self._part)
                self._is_sent, self._waiting = True, 0

    def flush(self) -> None:
        """Sends what was written; if that fails, it waits in memory, and a line says so."""
        try:
            self.send()
        except OSError as error:
            self._backlog.grow(error)
        else:
            self._backlog.clear()

    def close(self) -> None:
        """Sends the rest; says how many lines are lost if it cannot."""
        self.flush()
        self._backlog.lose(self._waiting)


def _name(generation: int, number: int) -> str:
    return f"{generation:06}-{number:06}.jsonl"
