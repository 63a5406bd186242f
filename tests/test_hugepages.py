"""The program asks for huge pages by starting again; nothing that happens meanwhile is lost."""

import os
import pathlib
import subprocess
import sys

import pytest

import recursia.__main__
from recursia import hugepages

PROGRAM = pathlib.Path(recursia.__main__.__file__)
STOPPED = """import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
os.execv(sys.executable, [sys.executable, "-m", "recursia", "train", "--help"])"""


class Started(Exception):
    """The program was started again, with these arguments."""


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Returns the file in which a system says whether it gives huge pages."""

    def start(path, arguments):
        raise Started(path, arguments)

    monkeypatch.setattr(hugepages, "_WHETHER", tmp_path / "enabled")
    monkeypatch.setattr(os, "execv", start)
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.36")
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), "train"])
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    return tmp_path / "enabled"


def test_a_program_starts_again_once_as_it_was_typed(system):
    with pytest.raises(Started) as raised:
        hugepages.ask(PROGRAM, [])
    assert raised.value.args == (sys.executable, [sys.executable, *sys.orig_argv[1:]])
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    hugepages.ask(PROGRAM, [])


@pytest.mark.parametrize(
    "text, argv, library",
    [
        ("[always] madvise never", str(PROGRAM), "glibc 2.36"),
        ("always madvise [never]", str(PROGRAM), "glibc 2.36"),
        ("always [madvise] never", "-c", "glibc 2.36"),
        ("always [madvise] never", "notebook.py", "glibc 2.36"),
        ("always [madvise] never", str(PROGRAM), "glibc 2.34"),
    ],
)
def test_what_would_gain_nothing_or_is_not_the_program_goes_on(
    system, monkeypatch, text, argv, library
):
    system.write_text(text)
    monkeypatch.setattr(sys, "argv", [argv])
    monkeypatch.setattr(os, "confstr", lambda _: library)
    hugepages.ask(PROGRAM, [])
    system.unlink()
    hugepages.ask(PROGRAM, [])


def test_a_signal_that_came_meanwhile_is_answered_by_the_second_start():
    env = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run([sys.executable, "-c", STOPPED], env=env, capture_output=True, text=True)
    assert done.returncode == 75 and "nothing to save" in done.stderr
