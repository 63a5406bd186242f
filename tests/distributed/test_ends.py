"""However one of several processes ends, the others end too, and say why."""

import os
import signal
import time

import pytest

from tests.helpers import cluster
from tests.helpers.cluster import SECTIONS, SLOWLY, START, alone, train
from tests.helpers.runs import is_equal, rows, saved, state_of, values, write_config, write_text

pytestmark = pytest.mark.slow
STEPS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ends")
    write_text(folder)
    sections = SECTIONS | {"train": {"num_steps": STEPS, "batch_size": 4}}
    sections |= {"checkpoint": {"every_steps": 0}, "eval": {"every_steps": 0}}
    write_config(folder / "fixed.py", values(folder, "fixed", **sections))
    return folder


def told(folder, workdir, output, index, number):
    """Starts a run, sends one of its processes a signal between two steps, and waits."""
    slowly = {i: SLOWLY + START for i in range(2)}
    processes = cluster.start(output, train(folder, workdir), count=2, scripts=slowly)
    before, metrics = len(rows(workdir)) if workdir.exists() else 0, workdir / "metrics.jsonl"
    until = time.monotonic() + cluster.LIMIT_SECONDS
    while time.monotonic() < until and all(process.code is None for process in processes):
        if metrics.exists() and len(metrics.read_text().splitlines()) >= before + 2:
            os.kill(processes[index].popen.pid, number)
            break
        time.sleep(0.05)
    codes = cluster.finish(processes)
    assert codes == [75, 75], "\n".join(processes[0].said[-20:] + processes[1].said[-20:])
    return processes


def test_one_of_two_told_to_stop_stops_both_after_the_same_step(folder, tmp_path, monkeypatch):
    at = 0
    for index, number in ((1, signal.SIGTERM), (0, signal.SIGUSR1)):
        processes = told(folder, tmp_path / "cut", tmp_path / "output", index, number)
        before, at = at, saved(tmp_path / "cut")[-1]
        assert before < at < STEPS
        for process in processes:
            assert process.said[-1].startswith(f"recursia: stopped by a signal: saved step {at};")
        assert rows(tmp_path / "cut")[-1]["step"] == at
    cluster.run(tmp_path / "output", train(folder, tmp_path / "cut"), count=2)
    alone(monkeypatch, 2, train(folder, tmp_path / "unbroken"))  # which two processes equal
    assert rows(tmp_path / "cut") == rows(tmp_path / "unbroken")
    assert is_equal(state_of(tmp_path / "cut", STEPS), state_of(tmp_path / "unbroken", STEPS))


MISSING = """
from recursia.errors import DataError
from recursia.train import opening

def load(run, paths, mesh):
    raise DataError("shard 7: not there")

opening.load = load
"""
NOT_FINITE = """
import numpy as np
from recursia.train.step import Trainer

def put(self, batch, real=Trainer.put, count=iter(range(1, 99))):
    return real(self, batch | ({"weights": batch["weights"] * np.nan} if next(count) == 3 else {}))

Trainer.put = put
"""


@pytest.mark.parametrize(
    ("script", "code", "said", "others"),
    [
        (MISSING, 3, "recursia: shard 7: not there", "recursia: process 1 could not go on"),
        (NOT_FINITE, 4, "recursia: step 3: loss nan", "recursia: step 3: loss nan"),
    ],
    ids=["data", "not finite"],
)
def test_what_one_process_finds_ends_both_with_its_code(
    folder, tmp_path, script, code, said, others
):
    every = ("--config.checkpoint.every_steps=1",)
    arguments = train(folder, tmp_path / "run", *every)
    processes = cluster.start(tmp_path / "output", arguments, count=2, scripts={1: script + START})
    assert cluster.finish(processes) == [code, code]
    assert processes[1].said[-1].startswith(said)
    assert processes[0].said[-1].startswith(others)
    assert saved(tmp_path / "run") == ([1, 2] if code == 4 else [])


def test_another_configuration_in_one_process_is_refused(folder, tmp_path):
    lower = """
from recursia.train import loop
import dataclasses

def train(run, *rest, real=loop.train):
    train = dataclasses.replace(run.train, seed=5)
    real(dataclasses.replace(run, train=train), *rest)

loop.train = train
"""
    processes = cluster.start(
        tmp_path / "output", train(folder, tmp_path / "run"), count=2, scripts={1: lower + START}
    )
    assert cluster.finish(processes) == [2, 2]
    assert "configuration or data: not that of process 0" in processes[1].said[-1]


SHORT = "from recursia import distributed\ndistributed.HEARTBEAT_SECONDS = 10\n"
LOST = """
from recursia.train.step import Trainer

def put(self, batch, real=Trainer.put, count=iter(range(1, 99))):
    if next(count) == 3:
        raise OSError("the disk is gone")
    return real(self, batch)

Trainer.put = put
"""


def test_a_process_that_fails_alone_takes_the_others_with_it(folder, tmp_path):
    scripts = {0: SHORT + START, 1: SHORT + LOST + START}
    arguments = train(folder, tmp_path / "run")
    processes = cluster.start(tmp_path / "output", arguments, count=2, scripts=scripts)
    began = time.monotonic()
    processes[1].popen.wait(cluster.LIMIT_SECONDS)
    left = time.monotonic()
    codes = cluster.finish(processes, 60)
    assert codes == [7, 1], (codes, left - began)
    assert "another process is lost" in processes[0].said[-1]
    assert processes[1].said[-1] == "OSError: the disk is gone"
    assert saved(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("index", "said"), [(0, "another process is missing"), (1, "nothing listens there")]
)
def test_a_missing_process_is_one_line(folder, tmp_path, index, said):
    short = "from recursia import distributed\ndistributed.JOIN_SECONDS = 3\n" + START
    scripts = {0: short, 1: short}
    arguments = train(folder, tmp_path / "run")
    process = cluster.start(tmp_path / "output", arguments, count=2, scripts=scripts, only=(index,))
    assert cluster.finish(process) == [2]
    (line,) = process[0].said
    assert line.startswith("recursia: --coordinator=127.0.0.1:") and said in line
    assert f"process {index} of 2 waited 3 s" in line
