"""Trials on this machine: each runs once, and again until all have a result."""

import re
import subprocess
import sys
import time

from recursia import console
from recursia.sweep import states, view
from recursia.workdir import ending
from tests.helpers import trials

LIMIT_SECONDS = 60


def test_each_trial_runs_once_and_is_never_run_again(sweep, tmp_path):
    _, said = sweep("--jobs=2")
    assert "3 trials: 3 finished" in said
    for again in ((), ("resume",)):
        _, said = sweep(*again)
        assert "3 trials: 3 finished" in said
    assert [len(each) for each in trials.starts(tmp_path / "s").values()] == [1, 1, 1]
    assert all((p / "log.txt").exists() for p in (tmp_path / "s" / "trials").iterdir())


def test_divergence_is_a_result_and_a_failure_is_tried_again_only_if_wanted(sweep, tmp_path):
    _, said = sweep(code=1, **{"0_1": "diverge", "1_0": "no data", "0_01": "crash"})
    assert trials.by_rate(tmp_path / "s") == {0.1: "diverged", 0.01: "failed", 1: "failed"}
    assert "data.path: there is none" in said and "RuntimeError: no such thing" in said
    sweep("resume", code=1)
    assert sorted(len(each) for each in trials.starts(tmp_path / "s").values()) == [1, 1, 1]
    sweep("resume", "--retry_failed")
    assert trials.by_rate(tmp_path / "s") == {0.1: "diverged", 0.01: "finished", 1: "finished"}
    assert sorted(len(each) for each in trials.starts(tmp_path / "s").values()) == [1, 2, 2]


def test_a_trial_that_was_stopped_and_crashes_before_it_begins_has_failed(sweep, tmp_path):
    sweep("--runner=print")
    for folder in (tmp_path / "s" / "trials").iterdir():
        ending.write(folder, 75, "stopped")
    sweep("--runner=local", code=1, **{"0_1": "crash"})
    assert trials.by_rate(tmp_path / "s") == {0.1: "failed", 0.01: "finished", 1: "finished"}


def test_a_terminal_shows_the_trials_as_they_run(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "is_live", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich knows a terminal
    monkeypatch.setattr(view, "EVERY", 0)
    _, said = sweep("--jobs=1", num_steps=20)
    assert re.search(r"running\S* +\d+/20", said) and "2 pending, 1 running" in said
    assert "3 trials: 3 finished\n" in said


def test_a_log_says_how_far_a_long_trial_is(sweep, monkeypatch):
    monkeypatch.setattr(view, "LOGGED", 0)
    _, said = sweep("--jobs=1", num_steps=20)
    assert re.search(r"^trial \w+: at step \d+ of 20, loss \d", said, re.MULTILINE)


HOLDS = """
import pathlib, sys, time
from recursia.workdir import ending, lock
folder = pathlib.Path(sys.argv[1])
held = lock.Lock(folder, print)
print("held", flush=True)
time.sleep(1.5)
if sys.argv[2] == "fails":
    ending.write(folder, 3, "no data")
held.close()
"""


def test_a_trial_that_another_process_trains_is_waited_for(sweep, tmp_path):
    """As after the end of the sweep's process alone: the two never train one trial at once.

    One that stops there goes on here, one that fails there does not.
    """
    sweep("--runner=print")
    folders, others = sorted((tmp_path / "s" / "trials").iterdir()), []
    for folder, what in zip(folders, ("stops", "fails"), strict=False):
        command = [sys.executable, "-c", HOLDS, folder, what]
        others.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert others[-1].stdout.readline() == b"held\n"
        assert states.of(folder) == (states.RUNNING, "")
    start = time.monotonic()
    _, said = sweep("--runner=local", code=1)
    assert time.monotonic() - start > 1 and [each.wait(LIMIT_SECONDS) for each in others] == [0, 0]
    assert "2 finished, 1 failed" in said and states.of(folders[1]) == ("failed", "no data")
    counts = {name: len(each) for name, each in trials.starts(tmp_path / "s").items()}
    assert counts == {folders[0].name: 1, folders[2].name: 1}
