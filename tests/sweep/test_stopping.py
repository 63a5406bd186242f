"""Trials that were stopped or whose sweep was killed go on where they were."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from recursia.sweep import processes
from tests.helpers import trials

LIMIT_SECONDS = 60


def stopped_after_a_row(place, number, process):
    """Sends a signal to a process once two trials have a row of metrics."""
    until = time.monotonic() + LIMIT_SECONDS
    while len(list(place.glob("trials/*/metrics.jsonl"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process, number)


def ends_as_if_unbroken(sweep, place, num_starts):
    sweep("resume", "--runner=local", num_steps=40)
    assert set(trials.by_rate(place).values()) == {"finished"}
    for path in (place / "trials").glob("*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == list(range(1, 41)), "each step once"
    counts = sorted(len(each) for each in trials.starts(place).values())
    assert counts == [1, num_starts, num_starts]


ALSO = [pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGINT, signal.SIGUSR1)]


@pytest.fixture
def number(request):
    """A signal that is not ignored, whatever the parent of this process ignores."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, *ALSO], indirect=True)
def test_a_signal_stops_all_trials_and_they_go_on_where_they_were(number, sweep, tmp_path):
    place = tmp_path / "s"
    sender = threading.Thread(target=stopped_after_a_row, args=(place, number, os.getpid()))
    sender.start()
    _, said = sweep("--jobs=2", num_steps=40, code=75)
    sender.join()
    assert said.splitlines()[-1].endswith("1 pending, 2 stopped; run the same command to go on")
    assert sorted(trials.by_rate(place).values()) == ["pending", "stopped", "stopped"]
    ends_as_if_unbroken(sweep, place, num_starts=2)


RUN = "import sys\nfrom recursia import cli\nfrom recursia.sweep import processes\n"
RUN += "processes.PROGRAM = (sys.executable, {!r})\nsys.exit(cli.main(sys.argv[1:]))"


@pytest.mark.slow
def test_trials_outlive_a_sweep_that_is_killed_and_the_next_one_waits_for_them(sweep, tmp_path):
    place = tmp_path / "s"
    sweep("--runner=print", "--threads=1", num_steps=40)
    arguments = ["sweep", "resume", f"--workdir={place}", "--runner=local", "--jobs=2"]
    program = RUN.format(processes.PROGRAM[1])
    started = subprocess.Popen([sys.executable, "-c", program, *arguments])
    stopped_after_a_row(place, signal.SIGKILL, started.pid)
    assert started.wait(LIMIT_SECONDS) == -signal.SIGKILL
    ends_as_if_unbroken(sweep, place, num_starts=1)
