"""One run at a time has a directory, and one that is gone holds nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from recursia.errors import CheckpointError
from recursia.workdir import lock
from recursia.workdir.lock import Lock
from tests.helpers.refusals import refused

HOLDER = """
import pathlib, sys, time
from recursia.workdir.lock import Lock
held = Lock(pathlib.Path(sys.argv[1]), print)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def said():
    return []


@pytest.fixture
def take(tmp_path, said):
    """Takes the lock of the directory, and gives back at the end what the test holds."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(Lock(tmp_path, said.append)))


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def elsewhere(tmp_path, age=0.0):
    """Leaves the lock of a process of another host, last touched so many seconds ago."""
    holder = {"host": "other", "process": 7, "machine": "other 1"}
    (tmp_path / lock.FILE).write_text(json.dumps(holder))
    touched = time.time() - age
    os.utime(tmp_path / lock.FILE, (touched, touched))


def test_a_second_run_is_refused_with_the_holder_and_its_age(tmp_path, holder, take, said):
    before = (tmp_path / lock.FILE).read_text()
    for number in (None, signal.SIGSTOP):  # a process that stands still is not gone
        if number:
            holder.send_signal(number)
        with refused(CheckpointError, f"process {holder.pid} on ", " s ago", "another workdir"):
            take()
    assert (tmp_path / lock.FILE).read_text() == before
    assert os.listdir(tmp_path) == [lock.FILE] and said == []


def test_a_killed_holder_on_this_host_is_followed_at_once(holder, take, said):
    holder.kill()
    holder.wait()
    assert take().is_held() and said == []


def test_a_lock_that_was_given_back_is_free(take):
    take().close()
    assert take().is_held()


def test_a_silent_holder_on_another_host_is_waited_for(tmp_path, take, said, monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    elsewhere(tmp_path)
    start = time.monotonic()
    assert take().is_held()
    assert time.monotonic() - start > 0.1
    assert len(said) == 1 and "process 7 on other" in said[0]


@pytest.mark.parametrize("behind", [0, -3000, 3000], ids=["", "ahead", "behind"])
def test_one_that_is_seen_to_live_is_not_followed_whatever_its_clock(tmp_path, monkeypatch, behind):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    elsewhere(tmp_path, behind)
    with refused(CheckpointError, "process 7 on other"):
        Lock(tmp_path, lambda line: elsewhere(tmp_path, behind - 1))


def test_one_that_was_silent_for_hours_is_followed_at_once(tmp_path, take, said):
    elsewhere(tmp_path, age=lock.CERTAIN_SECONDS + 60)
    assert take().is_held() and said == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', "[" * 5000, '{"process": "x"}'])
def test_a_lock_that_names_nobody_is_free(tmp_path, take, text):
    (tmp_path / lock.FILE).write_text(text)
    assert take().is_held()


def test_one_whose_lock_was_taken_over_ends(tmp_path, take):
    ours = take()
    ours.check()
    elsewhere(tmp_path)
    with refused(CheckpointError, "another run took it over"):
        ours.check()
    (tmp_path / lock.FILE).unlink()
    with refused(CheckpointError, "deleted"):
        ours.check()


def test_the_holder_touches_the_file(tmp_path, take, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    held = take()
    os.utime(tmp_path / lock.FILE, (0, 0))
    until = time.monotonic() + 60
    while held._touched() == 0 and time.monotonic() < until:
        time.sleep(0.01)
    assert held._age() < 60
