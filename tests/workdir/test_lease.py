"""One run at a time has a directory in a bucket, and one that is gone holds it only for a while."""

import contextlib
import json
import os
import subprocess
import sys
import threading

import pytest

from recursia import buckets
from recursia.errors import CheckpointError
from recursia.workdir import lease, lock
from recursia.workdir.lease import Lease
from tests.helpers.refusals import refused


@pytest.fixture
def take(bucket):
    """Takes the lock of the directory, and gives back at the end what the test holds."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(Lease(buckets.path(bucket), print)))


@pytest.fixture
def impatient(monkeypatch):
    """Beats and waits of a fraction of a second."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.6)


def elsewhere(bucket, number=1, count=1):
    """Leaves the lock of a process on another host."""
    holder = {"host": "other", "process": 7, "machine": "other 1", "count": count}
    place = buckets.path(bucket) / lock.FILE / f"{number:09}"
    place.write_bytes(json.dumps(holder).encode())
    return place


def test_a_second_run_is_refused_with_the_holder(bucket, take):
    held = take()
    with refused(CheckpointError, f"--workdir={bucket}", f"process {os.getpid()} on", "another"):
        take()
    held.check()
    assert lease.is_live(buckets.path(bucket))
    held.close()
    assert not lease.is_live(buckets.path(bucket))
    take().check()


def test_a_holder_on_this_machine_that_is_gone_is_followed_at_once(bucket, take, capsys):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    gone = {**lock.this_holder(), "process": process.pid, "count": 4}
    (buckets.path(bucket) / lock.FILE / "000000003").write_bytes(json.dumps(gone).encode())
    assert take().is_held() and capsys.readouterr().out == ""


def test_a_silent_holder_elsewhere_is_waited_for_and_a_live_one_refuses(bucket, take, impatient):
    place = elsewhere(bucket)
    beat = threading.Timer(0.3, lambda: elsewhere(bucket, count=2))
    beat.start()
    with refused(CheckpointError, "process 7 on other"):
        take()
    beat.join()
    take().check()
    assert not place.exists()


def test_a_holder_that_was_cut_off_finds_who_followed_it(bucket, take):
    held = take()
    elsewhere(bucket, number=2)
    with refused(CheckpointError, f"--workdir={bucket}", "no longer this run's"):
        held.check()


def test_of_many_that_come_at_once_one_takes_the_lock(bucket, impatient):
    elsewhere(bucket)
    taken, refusals = [], []

    def come():
        try:
            taken.append(Lease(buckets.path(bucket), lambda line: None))
        except CheckpointError as error:
            refusals.append(error)

    comers = [threading.Thread(target=come) for _ in range(4)]
    for comer in comers:
        comer.start()
    for comer in comers:
        comer.join()
    for held in taken:
        held.close()
    assert len(taken) == 1 and len(refusals) == 3
