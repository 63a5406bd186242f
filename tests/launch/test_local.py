"""Two processes on this machine: stopped, started again, and finished."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import cluster
from tests.helpers.runs import is_equal, rows, saved, state_of, values, write_config, write_text

STEPS = 120  # of tens of milliseconds each, so that a signal arrives in between
SECTIONS = {
    **cluster.SECTIONS,
    "train": {"num_steps": STEPS, "batch_size": 4},
    "checkpoint": {"every_steps": 0},
    "eval": {"every_steps": 0, "num_batches": 1},
    "log": {"every_steps": 10, "sinks": []},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    write_text(folder)
    write_config(folder / "fixed.py", values(folder, "fixed", **SECTIONS))
    return folder


def launch(folder, workdir):
    """Starts the two processes of a run; returns the launcher, once the run has made steps."""
    typed = [f"--config={folder}/fixed.py", f"--workdir={workdir}", "--restarts=2"]
    command = [sys.executable, "-m", "recursia", "launch", "--target=local", *typed]
    command += ["--target.processes=2"]
    launcher = subprocess.Popen(
        command, env=cluster.environment(1), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    until, metrics = time.monotonic() + cluster.LIMIT_SECONDS, workdir / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert launcher.poll() is None and time.monotonic() < until, launcher.communicate()
        time.sleep(0.1)
    return launcher


def children(launcher):
    path = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    found = [int(each) for each in path.read_text().split()]
    command = lambda pid: pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return {c[-2]: pid for pid in found if b"train" in (c := command(pid))}


@pytest.mark.slow
def test_a_signal_to_one_process_restarts_all_and_the_end_is_that_of_the_unbroken_run(
    folder, tmp_path
):
    cluster.run(tmp_path / "output", cluster.train(folder, tmp_path / "whole"), count=2)
    launcher = launch(folder, tmp_path / "run")
    os.kill(children(launcher)[b"--process_id=1"], signal.SIGTERM)
    said, _ = launcher.communicate(timeout=cluster.LIMIT_SECONDS)
    assert launcher.returncode == 0, said.decode()
    assert said.decode().count("launch: stopped, and saved; restart 1 of 2") == 1
    assert len(saved(tmp_path / "run")) == 2
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert is_equal(state_of(tmp_path / "run", STEPS), state_of(tmp_path / "whole", STEPS))


@pytest.mark.slow
def test_a_signal_to_the_command_reaches_all_processes_and_ends_it(folder, tmp_path):
    launcher = launch(folder, tmp_path / "run")
    processes = children(launcher).values()
    launcher.send_signal(signal.SIGTERM)
    said, _ = launcher.communicate(timeout=cluster.LIMIT_SECONDS)
    assert launcher.returncode == 75, said.decode()
    assert "restart" not in said.decode()
    assert len(processes) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in processes)
    assert 0 < saved(tmp_path / "run")[-1] < STEPS
