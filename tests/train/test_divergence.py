"""A run that diverges ends, skips the step or goes back, as its settings say, and records why."""

import json

import numpy as np
import pytest

from recursia import cli, settings
from recursia.data.loader import Loader
from recursia.train.divergence import Losses, Watch
from recursia.train.stop import Stop
from recursia.workdir.checkpoint import Checkpoints
from tests.helpers.runs import command, is_equal, rows, saved, state_of, train

DIVERGED = 4


def losses(values, **changed):
    watch = Losses(settings.Divergence(**changed), ())
    for step, value in enumerate(values, 1):
        watch.add(step, value)
    return watch


def test_the_limit_is_the_median_and_a_number_of_deviations():
    past = losses([3.0, 5.0, 4.0, 4.5, 100.0], deviations=2.0)
    assert past.limit(1) == past.limit(2) == np.inf
    assert past.limit(3) == np.float32(3.0 + 2 * 0.1)  # the loss of step 2 is not read yet
    deviation = 1.4826 * 0.5  # of 3, 5, 4, 4.5 from 4.25: 1.25, .75, .25, .25
    assert past.limit(6) == np.float32(4.25 + 2 * deviation)
    assert losses([9.0, 9.0, 1.0, 1.0, 1.0], window=2).limit(6) == np.float32(1.0 + 20 * 0.1)
    assert losses([1.0, 1.0], deviations=0).limit(9) == np.inf


def test_the_limit_of_a_step_is_that_of_a_resumed_run():
    whole = losses(np.linspace(5, 2, 30), window=7)
    for step in range(9, 30):
        before = losses(np.linspace(5, 2, 30)[: step - 1], window=7)
        assert before.limit(step) == Losses(settings.Divergence(window=7), before.past()).limit(
            step
        )
    assert len(whole.past()) == 8


@pytest.mark.parametrize("seed", range(3))
def test_falling_and_noisy_losses_are_no_spikes(seed):
    noise = np.random.default_rng(seed).normal(0, 0.15, 500)
    watch = Watch(settings.Divergence(), {})
    for step, loss in enumerate(2 + 8 * np.exp(-np.arange(500) / 60) + noise, 1):
        assert not watch.fault(step, float(loss), 1.0)


@pytest.fixture
def spoiled(monkeypatch):
    """Spoils batches by their number from 0: another target everywhere, or no numbers."""
    real = Loader.batch

    def spoil(**how):
        def batch(self, number):
            rows = real(self, number)
            match how.get(f"batch_{number}"):
                case "wrong":
                    return rows | {"targets": np.full_like(rows["targets"], 250)}
                case "nan":
                    return rows | {"weights": rows["weights"] * np.float32(np.nan)}
            return rows

        monkeypatch.setattr(Loader, "batch", batch)

    return spoil


STRICT = "--config.divergence.deviations=0.5"  # so that a batch of one rare token is a spike


def incidents(workdir):
    return [json.loads(line) for line in (workdir / "incidents.jsonl").read_text().splitlines()]


def test_a_spike_stops_a_run_and_is_recorded(folder, tmp_path, spoiled, capsys):
    spoiled(batch_3="wrong")
    assert train(folder, tmp_path, STRICT) == DIVERGED
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        line.startswith("recursia: step 4: loss ") and "is a spike: the last losses allow" in line
    )
    assert saved(tmp_path) == [2]
    (row,) = incidents(tmp_path)
    assert (row["step"], row["policy"], row["batch"]) == (4, "stop", 3)
    assert row["loss"] > row["limit"] and np.isfinite(row["gradient_norm"])
    assert len(row["rows"]) == 8 and {name for name, _ in row["rows"]} == {str(tmp_path / "data")}


def test_a_skipped_step_leaves_the_parameters(folder, tmp_path, spoiled, capsys):
    spoiled(batch_3="wrong")
    skip = ("--config.divergence.policy=skip", "--config.checkpoint.every_steps=1")
    skip += ("--config.checkpoint.keep=9",)
    assert train(folder, tmp_path, STRICT, *skip) == 0
    assert "step 4: loss " in (said := capsys.readouterr().err) and "; skipped" in said
    (row,) = incidents(tmp_path)
    assert (row["step"], row["policy"]) == (4, "skip")
    third, fourth, fifth = (state_of(tmp_path, step) for step in (3, 4, 5))
    names = [name for name in third if third[name].dtype.kind == "f"]
    assert all(np.array_equal(third[name], fourth[name]) for name in names)
    assert not all(np.array_equal(fourth[name], fifth[name]) for name in names)
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2, 3, 5, 6]


def test_a_run_that_goes_back_takes_other_batches_and_resumes_to_the_bit(
    folder, tmp_path, spoiled, capsys, monkeypatch
):
    spoiled(batch_3="wrong")
    back = (STRICT, "--config.divergence.policy=roll_back")
    assert train(folder, tmp_path / "a", *back) == 0
    said = capsys.readouterr().err
    assert "; going back" in said and f"resuming {tmp_path / 'a'} at step 2" in said
    meta = Checkpoints(tmp_path / "a" / "checkpoints", is_read_only=True).meta(6)
    assert meta["passed"] == 2  # the batches of steps 3 and 4
    assert [row["step"] for row in rows(tmp_path / "a") if "loss" in row] == [1, 2, 3, 4, 5, 6]
    real = Stop.comes_after
    monkeypatch.setattr(Stop, "comes_after", lambda self, step: step == 5 or real(self, step))
    assert train(folder, tmp_path / "b", *back) == 75
    monkeypatch.setattr(Stop, "comes_after", real)
    assert train(folder, tmp_path / "b", *back) == 0
    assert is_equal(state_of(tmp_path / "a", 6), state_of(tmp_path / "b", 6))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


@pytest.mark.slow
def test_too_many_faults_end_a_run(folder, tmp_path, spoiled, capsys):
    spoiled(batch_2="nan", batch_3="nan")
    few = ("--config.divergence.policy=skip", "--config.divergence.most=1")
    assert train(folder, tmp_path, *few, "--config.checkpoint.every_steps=0") == DIVERGED
    assert "step 4: loss nan" in (said := capsys.readouterr().err) and "2 times" in said
    assert len(incidents(tmp_path)) == 2


@pytest.mark.slow
def test_a_learning_rate_of_30_does_not_end_well(folder, tmp_path):
    short = ("--config.train.num_steps=3", "--config.schedule.kind=constant")
    assert train(folder, tmp_path, *short) == 0
    rest = ("--config.train.num_steps=40", "--config.schedule.kind=constant")
    wild = ("--config.optimizer.learning_rate=30", "--config.eval.every_steps=0")
    assert cli.main(command(folder, tmp_path, *rest, *wild)) == DIVERGED
