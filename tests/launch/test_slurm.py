"""A run on a real SLURM cluster of one node: stopped, queued again, and finished."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.helpers import cluster, slurm
from tests.helpers.runs import is_equal, rows, saved, state_of, values, write_config, write_text

STEPS = 1500  # of milliseconds each, so that the signal arrives in between
SECTIONS = {
    "train": {"num_steps": STEPS, "batch_size": 4},
    "checkpoint": {"every_steps": 0},
    "eval": {"every_steps": 0, "num_batches": 1},
    "log": {"every_steps": 50, "sinks": []},
}
LIMIT_SECONDS = 600


def wait(what, until):
    while not (found := what()):
        assert time.monotonic() < until, "the job did not get there in time"
        time.sleep(0.3)
    return found


@pytest.mark.slow
def test_a_job_that_is_stopped_is_queued_again_and_ends_as_the_unbroken_run(tmp_path):
    write_text(tmp_path)
    config = write_config(tmp_path / "tiny.py", values(tmp_path, "fixed", **SECTIONS))
    cluster.run(
        tmp_path / "output", ["train", f"--config={config}", f"--workdir={tmp_path}/whole"], count=1
    )
    with slurm.cluster(tmp_path / "slurm") as env:
        env |= {"XLA_FLAGS": cluster.environment(1)["XLA_FLAGS"]}
        shared = f"{tmp_path},{pathlib.Path(sys.prefix)}"
        typed = ["--target=slurm", "--topology=cpu:1", f"--config={config}"]
        typed += [f"--workdir={tmp_path}/run", f"--shared={shared}", f"--venv={sys.prefix}"]
        logs = tmp_path / "logs, 5% of #1"
        logs.mkdir()
        typed += ["--hours=1", "--restarts=3", f"--target.logs={logs}"]
        sent = [sys.executable, "-m", "recursia", "launch", *typed]
        done = subprocess.run(sent, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        number, until = done.stdout.split()[-1], time.monotonic() + LIMIT_SECONDS
        metrics = tmp_path / "run" / "metrics.jsonl"
        wait(lambda: metrics.exists() and metrics.stat().st_size, until)
        slurm.asked(env, "scancel", "--signal=TERM", number)  # to the processes, as at the limit
        state = lambda: slurm.asked(env, "scontrol", "show", "job", number)
        wait(lambda: "JobState=COMPLETED" in state() or "JobState=FAILED" in state(), until)
        said = (logs / f"run-{number}.log").read_text()
        assert "Restarts=1" in state() and "ExitCode=0:0" in state(), said[-2000:]
    assert "resum" in said and os.path.exists(tmp_path / "run" / "config.json")
    assert saved(tmp_path / "run")[-1] == STEPS and len(saved(tmp_path / "run")) == 2
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert is_equal(state_of(tmp_path / "run", STEPS), state_of(tmp_path / "whole", STEPS))
