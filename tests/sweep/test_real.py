"""Sweeps of real training runs: killed, resumed, and equal to unbroken ones."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from recursia.sweep import directory, engines, states
from tests.helpers import slurm, trials
from tests.helpers.cluster import environment
from tests.helpers.runs import is_equal, rows, saved, state_of

STEPS = 300
SECTIONS = {
    "train": {"num_steps": STEPS, "batch_size": 4},
    "checkpoint": {"every_steps": 50, "keep": 2},
    "eval": {"every_steps": 150, "num_batches": 1},
    "log": {"every_steps": 50, "sinks": []},
}
LIMIT_SECONDS = 400


def sweep(*arguments, **how):
    command = [sys.executable, "-m", "recursia", "sweep", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **how)


def wait(what):
    until = time.monotonic() + LIMIT_SECONDS
    while not (found := what()):
        assert time.monotonic() < until, "the trials did not get there in time"
        time.sleep(0.1)
    return found


def state(place):
    found = directory.read(place)
    return {name: states.of(found.folder(name))[0] for name in found.trials}


def saves(place):
    """Returns when each trial has saved last."""
    return {path: path.stat().st_mtime for path in place.glob("trials/*/checkpoints.jsonl")}


def assert_equal(ours, theirs):
    """Asserts that two sweeps have the same trials, steps, losses and parameters, bit for bit."""
    assert directory.read(ours).trials == directory.read(theirs).trials
    for name in directory.read(ours).trials:
        one, other = (place / directory.TRIALS / name for place in (ours, theirs))
        assert rows(one) == rows(other) and saved(one)[-1] == STEPS
        assert is_equal(state_of(one, STEPS), state_of(other, STEPS))


@pytest.mark.slow
def test_a_sweep_that_is_stopped_and_killed_ends_as_the_unbroken_one(tmp_path):
    config = trials.write(tmp_path, trials.RATES.format("(0.001, 0.01, 0.02)"), **SECTIONS)
    env = environment(devices=1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given = (f"--config={config}", "--jobs=2", "--threads=1")
    unbroken = sweep(*given, f"--workdir={whole}", env=env)
    assert unbroken.communicate()[1] and unbroken.returncode == 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = saves(broken)
        running = sweep(*given, f"--workdir={broken}", env=env)
        wait(lambda seen=before: saves(broken) != seen)
        running.send_signal(number)
        said = running.communicate()[1]
        assert running.returncode == (75 if number == signal.SIGTERM else -number), said
    resumed = sweep("resume", f"--workdir={broken}", "--jobs=2", env=env)
    assert "3 trials: 3 finished" in resumed.communicate()[1] and resumed.returncode == 0
    assert_equal(broken, whole)


@pytest.mark.slow
def test_an_array_of_slurm_is_sent_once_and_ends_as_trials_do_here(tmp_path):
    config = trials.write(tmp_path, trials.RATES.format("(0.001, 0.01)"), **SECTIONS)
    env = environment(devices=1)
    with slurm.cluster(tmp_path / "slurm") as cluster:
        cluster |= env | {"SLURM_CONF": cluster["SLURM_CONF"]}
        shared = f"--shared={tmp_path},{pathlib.Path(sys.prefix)}"
        place, typed = tmp_path / "s", ("--runner=slurm", "--topology=cpu:1")
        given = (f"--config={config}", f"--workdir={place}", *typed, shared)
        starts = lambda state: slurm.asked(
            cluster, "scontrol", "update", "PartitionName=all", f"State={state}"
        )
        starts("DOWN")  # what is sent stays in the queue
        assert "down" in slurm.asked(cluster, "sinfo", "--noheader", "--format=%a")
        sent = sweep(*given, f"--venv={sys.prefix}", env=cluster)
        said = sent.communicate()[1]
        assert sent.returncode == 0, said
        again = sweep("resume", f"--workdir={place}", env=cluster)
        assert "2 of 2 are queued or running" in again.communicate()[1]
        starts("UP")
        wait(lambda: set(state(place).values()) == {"finished"})
        done = sweep("resume", f"--workdir={place}", env=cluster)
        assert "nothing to send" in done.communicate()[1] and done.returncode == 0
    (submission,) = engines.sent(place)
    assert submission.job.isdecimal()
    assert all(saved(place / "trials" / name)[-1] == STEPS for name in directory.read(place).trials)
