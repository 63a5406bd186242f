"""Standard output and error whose readers may close them.

Messages to a closed stream are dropped. A command whose result is its standard output exits with
141, as if SIGPIPE had killed it. A character that the stream's encoding lacks is written as an
escape.
"""

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any

from recursia.errors import OutputLost


class _Raw(io.FileIO):
    """A descriptor to write to, which drops bytes once its reader has closed it."""

    def __init__(self, descriptor: int, is_product: bool, is_lost: bool):
        super().__init__(descriptor, "w", closefd=False)
        self.is_product, self._is_lost = is_product, is_lost

    def write(self, data: Any) -> int:
        try:
            if self._is_lost:
                raise OSError(errno.EBADF, "closed")
            while (count := super().write(data)) is None:  # a full, non-blocking pipe
                select.select([], [self], [])
            return count
        except OSError as error:
            if self.is_product:
                self.is_product = False  # raises once
                raise OutputLost(error.errno or errno.EIO) from None
            return len(data)


def outlive_readers() -> None:
    """Replaces both standard streams, except one that a program has already replaced."""
    lost = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    # The next file that is opened would get a closed standard descriptor.
    while (spare := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(spare)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        given = getattr(sys, name)
        if given is not getattr(sys, f"__{name}__"):
            continue
        raw = _Raw(descriptor, name == "stdout", name in lost)
        with contextlib.suppress(OutputLost):
            given and given.flush()
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=given.encoding if given else "utf-8",
            errors="backslashreplace",
            line_buffering=name == "stderr" or raw.isatty(),
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def print_nothing_of_note() -> None:
    """Marks standard output as messages, so that a closed reader does not end the command."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Raw):
        raw.is_product = False
