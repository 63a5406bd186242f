"""Huge pages: memory in pieces of 2 MB, which a system may give to programs that ask for them.

A training step on a CPU takes hundreds of megabytes from the system and gives them back. In pages
of 4 KB the system prepares each of them anew, which is a part of the time of a step
(docs/performance.md). The C library asks for huge pages if it is told so before it starts.
"""

import os
import pathlib
import signal
import sys
from collections.abc import Collection

ASKED = "glibc.malloc.hugetlb"
TUNABLES = "GLIBC_TUNABLES"
_WHETHER = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SINCE = (2, 35)  # of the C library


def ask(program: pathlib.Path, signals: Collection[int]) -> None:
    """Starts the program again with a C library that asks for huge pages; changes nothing else.

    Returns if that is done already, cannot be done, or brings nothing.

    Args:
      program: the module of the command line. A script that only calls it is not started again.
      signals: those that end the program. They wait until it has started and calls `unblock`.
    """
    started = pathlib.Path(sys.argv[0]).resolve()
    if started != program.resolve() and started.name != "recursia":
        return
    set_before = os.environ.get(TUNABLES, "")
    if ASKED in set_before or not _gives():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    os.environ[TUNABLES] = ":".join(filter(None, (set_before, f"{ASKED}=1")))
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:  # the program goes on without
        unblock(signals)


def unblock(signals: Collection[int]) -> None:
    """Delivers the signals that came while the program was started again."""
    if ASKED in os.environ.get(TUNABLES, ""):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _gives() -> bool:
    """Returns whether the system gives huge pages to those that ask, and only to them."""
    try:
        name, version = os.confstr("CS_GNU_LIBC_VERSION").split()
        is_known = name == "glibc" and tuple(map(int, version.split("."))) >= _SINCE
        return is_known and "[madvise]" in _WHETHER.read_text()
    except (OSError, ValueError, AttributeError):
        return False
