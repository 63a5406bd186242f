"""A step is replayed to the bit, and its verdict tells a fault of the data from the machine's."""

import json
import shutil

import numpy as np
import pytest

from recursia.data.loader import Loader
from recursia.train.step import Trainer
from recursia.workdir import settings_history
from tests.helpers.runs import hashes, train


@pytest.fixture
def run(unbroken, tmp_path):
    return shutil.copytree(unbroken, tmp_path / "run")


@pytest.fixture
def replayed(command):
    """Replays a step; returns what was printed as JSON."""

    def replay(workdir, step, code):
        out, _ = command("replay", f"--workdir={workdir}", f"--step={step}", "--json", code=code)
        return json.loads(out)

    return replay


def test_a_sound_step_gives_what_was_recorded(run, replayed):
    known = "data_checked.json"  # what of the data is whole may be remembered
    before = hashes(run)
    found = replayed(run, 6, 0)
    assert found["start"] == 4 and found["recorded"]["loss"] == found["loss"]
    assert found["is_repeated"] and "nothing is at fault" in found["verdict"]
    assert found["batch"] == 5 and len(found["rows"]) == 8
    after = hashes(run)
    assert before | {known: after[known]} == after


@pytest.mark.slow
def test_a_step_is_replayed_with_the_settings_of_its_time(folder, run, replayed):
    shutil.rmtree(run / "checkpoints" / "6")
    assert train(folder, run, "--config.optimizer.learning_rate=0.5") == 0
    shutil.rmtree(run / "checkpoints" / "6")
    assert train(folder, run, "--config.optimizer.learning_rate=0.25") == 0
    assert replayed(run, 6, 0)["differs_at"] is None  # at 0.25
    lines = (run / "settings_history.jsonl").read_text().splitlines()
    assert [json.loads(line)["changed"]["optimizer.learning_rate"] for line in lines] == [
        [0.01, 0.5],
        [0.5, 0.25],
    ]
    assert settings_history.of_step(run, 5).optimizer.learning_rate == 0.25
    assert settings_history.of_step(run, 4).optimizer.learning_rate == 0.01


def test_another_record_is_the_machines(run, replayed):
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["step"] == 5 and "loss" in line:
            line["loss"] = float(np.nextafter(np.float32(line["loss"]), np.float32(9)))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = replayed(run, 6, 1)
    assert found["differs_at"] == 5 and "the machine erred then" in found["verdict"]


def test_two_repetitions_that_differ_are_the_machines(run, replayed, monkeypatch):
    real, count = Trainer.put, iter(range(99))

    def put(self, batch):
        wrong = {"targets": batch["targets"][::-1].copy()} if next(count) == 3 else {}
        return real(self, batch | wrong)

    monkeypatch.setattr(Trainer, "put", put)
    found = replayed(run, 6, 1)
    assert not found["is_repeated"] and "this machine is at fault" in found["verdict"]


def test_a_batch_that_diverges_again_is_the_datas(folder, tmp_path, replayed, monkeypatch):
    real = Loader.batch

    def batch(self, number):
        rows = real(self, number)
        bad = {"weights": rows["weights"] * np.float32(np.nan)} if number == 2 else {}
        return rows | bad

    monkeypatch.setattr(Loader, "batch", batch)
    assert train(folder, tmp_path, "--config.checkpoint.every_steps=1") == 4
    found = replayed(tmp_path, 3, 0)
    assert found["start"] == 2 and found["fault"].startswith("loss nan")
    assert "the data or the program is at fault" in found["verdict"]


def test_a_step_that_the_run_has_not_is_refused(run, refused_command):
    refused_command("replay", f"--workdir={run}", "--step=7", parts=("--step=7", "1 to 6"))
