"""The device never waits for the loop: numbers late, batches early, saves aside, time accounted."""

import itertools
import json
import os
import sys
import threading

import pytest

from recursia.data.loader import Loader
from recursia.train import loop
from recursia.train.metrics import Ledger
from recursia.train.step import Trainer
from tests.helpers.runs import tiny_run, write_text

WAIT_SECONDS = 60  # at most, for what comes at once if it comes


@pytest.fixture
def train(tmp_path):
    """Trains a tiny model; returns the directory of the run."""
    write_text(tmp_path)

    def run(**sections):
        quiet = {"eval": {"every_steps": 0}, "checkpoint": {"every_steps": 0}}
        loop.train(tiny_run(tmp_path, "fixed", **(quiet | sections)), tmp_path / "run", {})
        return tmp_path / "run"

    return run


@pytest.fixture
def sends(monkeypatch):
    """Calls what is appended with the number of each step as it is sent to the devices."""
    calls, real = [], Trainer.step_function

    def step_function(self, step):
        update = real(self, step)

        def send(*given):
            result = update(*given)
            for call in calls:
                call(step + 1)
            return result

        return send

    monkeypatch.setattr(Trainer, "step_function", step_function)
    return calls


def test_numbers_of_a_step_are_read_once_the_next_is_under_way(train, sends, monkeypatch):
    events, real = [], loop.Loop.log
    sends.append(lambda step: events.append(("sent", step)))

    def log(self, step, metrics):
        events.append(("read", step))
        real(self, step, metrics)

    monkeypatch.setattr(loop.Loop, "log", log)
    train(checkpoint={"every_steps": 4})
    # Step 4 is saved and 6 the last: they are read at once, to know that they are sound.
    assert events == [
        *(("sent", 1), ("sent", 2), ("read", 1), ("sent", 3), ("read", 2), ("sent", 4)),
        *(("read", 3), ("read", 4), ("sent", 5), ("sent", 6), ("read", 5), ("read", 6)),
    ]


def test_batches_are_read_ahead_by_other_threads(train, sends, monkeypatch):
    read, ahead, real = {}, threading.Event(), Loader.batch

    def batch(self, step):
        read[step] = threading.current_thread()
        if step == 4:
            ahead.set()
        return real(self, step)

    monkeypatch.setattr(Loader, "batch", batch)
    came = []
    sends.append(lambda step: came.append(ahead.wait(WAIT_SECONDS)) if step == 1 else None)
    train()
    assert came == [True]  # the fifth batch, while the loop stood at the first step
    assert threading.current_thread() not in read.values()


def test_steps_go_on_while_a_save_is_written(train, sends):
    next_step, found, watching = threading.Event(), [], [True]

    def hook(event, arguments):  # the file that makes a save count is written last
        last = os.path.join("2", "commit_success.txt")
        if watching and event == "open" and str(arguments[0]).endswith(last):
            watching.clear()
            found.append(next_step.wait(WAIT_SECONDS))

    sys.addaudithook(hook)
    sends.append(lambda step: next_step.set() if step == 3 else None)
    train(checkpoint={"every_steps": 2})
    assert found == [True]


def test_the_parts_of_a_ledger_sum_to_all_the_time():
    clock = itertools.accumulate([5.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    ledger = Ledger(lambda: next(clock))
    for part in ("data_wait", "step", "data_wait"):
        ledger.to(part)
    row = ledger.row()
    expected = {"init": 1.0, "data_wait": 2.0 + 8.0, "step": 4.0}
    assert row == {f"seconds_{part}": expected.get(part, 0.0) for part in Ledger.PHASES}
    line = ledger.line()
    assert "data_wait 26.0" in line and line.endswith("in all 31.0")


def test_rows_and_the_last_line_say_where_the_time_went(train, capsys):
    workdir = train(eval={"every_steps": 3}, checkpoint={"every_steps": 3})
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().split("\n")[:-1]]
    names = [f"seconds_{part}" for part in Ledger.PHASES]
    for before, after in itertools.pairwise(lines):
        assert all(0 <= before[name] <= after[name] for name in names)
    trained = [line for line in lines if "loss" in line]
    assert trained[0]["seconds_init"] > 0 and trained[0]["seconds_compile"] > 0
    # Steps share a program, and nothing is validated or saved before the third.
    assert trained[-1]["seconds_compile"] == trained[0]["seconds_compile"]
    assert trained[1]["seconds_eval"] == trained[1]["seconds_save"] == 0
    assert lines[-1]["seconds_eval"] > trained[-1]["seconds_eval"] > 0
    assert trained[-1]["seconds_save"] > 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "seconds  init" in line]
    assert all(f"{part} " in said for part in Ledger.PHASES) and "in all" in said
