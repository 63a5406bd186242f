"""A run that resumes with other settings says so, and keeps a record; some make another run."""

import json
import shutil

import pytest

from tests.helpers.refusals import assert_one_line
from tests.helpers.runs import STEPS, hashes, train


@pytest.fixture
def half(folder, unbroken, tmp_path):
    """A run whose next step is the fifth."""
    shutil.copytree(unbroken, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    return tmp_path / "run"


@pytest.mark.slow
def test_what_has_changed_is_printed_and_recorded(folder, half, capsys):
    changed = ("optimizer.learning_rate=5e-3", "train.loss_chunk=8", "schedule.kind=cosine")
    assert train(folder, half, *(f"--config.{each}" for each in changed)) == 0
    said = capsys.readouterr().err.splitlines()
    assert "changed: config.optimizer.learning_rate was 0.01, is 0.005" in said
    (line,) = (half / "settings_history.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["step"] == 4 and row["changed"] == {
        "train.loss_chunk": [128, 8],
        "optimizer.learning_rate": [0.01, 0.005],
        "schedule.kind": ["wsd", "cosine"],
    }


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.seed=7", ("config.train.seed was 0 and is 7",)),
        ("optimizer.kind=muon", ("config.optimizer.kind was 'adamw' and is 'muon'",)),
        ("data.seed=3", ("data.seed 0", "3")),
        ("train.batch_size=16", ("train.batch_size 8", "16")),
    ],
)
def test_a_field_that_makes_another_run_is_refused(folder, half, capsys, override, parts):
    before = hashes(half)
    assert train(folder, half, f"--config.{override}") == 5
    err = capsys.readouterr().err.splitlines(keepends=True)
    assert_one_line(err[-1], "use another workdir", *parts)
    assert {**hashes(half), "run.lock": before["run.lock"]} == before
