"""A run that is told to stop and started again ends where the unbroken run ends."""

import math
import os
import signal

import numpy as np
import pytest

from recursia import cli
from recursia.data import prepare
from recursia.train import loop
from recursia.train.step import Trainer
from recursia.workdir.checkpoint import Checkpoints
from tests.helpers.refusals import assert_one_line
from tests.helpers.runs import (
    STEPS,
    differences,
    hashes,
    prose,
    rows,
    saved,
    state_of,
    tiny_run,
    train,
)


@pytest.fixture(autouse=True)
def handlers():
    """Gives the signals back that a run listens to."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def once(monkeypatch, cls, name, is_time, action):
    """Runs `action` once, as the run calls a method with arguments for which it is time."""
    real, left = getattr(cls, name), [action]

    def hooked(self, *args):
        if left and is_time(*args):
            left.pop()()
        return real(self, *args)

    monkeypatch.setattr(cls, name, hooked)


def signals(number):
    return lambda: os.kill(os.getpid(), number)


def test_a_run_told_to_stop_ends_where_the_unbroken_one_does(
    folder, unbroken, tmp_path, monkeypatch, capsys
):
    # While it waits for a step: it stops after the next, which it would not save by itself.
    once(monkeypatch, loop.Loop, "log", lambda step, _: step == 2, signals(signal.SIGTERM))
    assert train(folder, tmp_path) == 75
    assert capsys.readouterr().err.splitlines()[-1].startswith("recursia: stopped by a signal: ")
    assert saved(tmp_path)[-1] == rows(tmp_path)[-1]["step"] == 3
    monkeypatch.undo()
    # Between two steps, by the signal that schedulers send ahead.
    fifth = iter([False, True])
    once(monkeypatch, Trainer, "put", lambda _: next(fifth), signals(signal.SIGUSR1))
    assert train(folder, tmp_path) == 75
    assert saved(tmp_path)[-1] == 5
    assert train(folder, tmp_path) == 0
    assert f"resuming {tmp_path} at step 5" in capsys.readouterr().err
    assert not differences(tmp_path, unbroken)


def test_signals_during_the_save_change_nothing(folder, unbroken, tmp_path, monkeypatch, capsys):
    def told(count=3):
        for number in count * (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)

    once(monkeypatch, loop.Loop, "log", lambda step, _: step == 2, signals(signal.SIGHUP))
    once(monkeypatch, Checkpoints, "finish", lambda: saved(tmp_path) == [2], told)
    assert train(folder, tmp_path) == 75
    assert capsys.readouterr().err.splitlines()[-1].startswith("recursia: stopped by a signal: ")
    assert train(folder, tmp_path) == 0
    assert not differences(tmp_path, unbroken)


def test_a_finished_run_says_so_and_changes_nothing(folder, unbroken, capsys):
    before = hashes(unbroken)
    assert train(folder, unbroken, "--config.train.remat=block") == 0  # no part of what it is
    assert f"{unbroken}: finished at step {STEPS}; nothing to do" in capsys.readouterr().err
    assert hashes(unbroken) == before


REFUSED = {
    "model": (
        "--config.model.block.mlp_dim=48",
        5,
        ("model.block.feedforward.mlp_dim", "32", "48"),
    ),
    "data": ("--config.data.path={other}", 5, ("data.files", "of train.txt", "of other.txt")),
    "text": ("--config.data.text={text}", 3, ("prepared with other sources",)),
}


@pytest.mark.parametrize(("override", "code", "parts"), REFUSED.values(), ids=REFUSED)
def test_a_run_of_something_else_is_refused_and_overwrites_nothing(
    folder, unbroken, tmp_path, capsys, override, code, parts
):
    text = tmp_path / "other.txt"
    text.write_text(prose(2, 800))
    if "{other}" in override:
        options = prepare.Options("byte", (str(folder / "validation.txt"),))
        prepare.prepare((str(text),), str(tmp_path / "other"), options)
    before = hashes(unbroken)
    override = override.format(other=tmp_path / "other", text=text)
    assert train(folder, unbroken, override) == code
    assert_one_line(capsys.readouterr().err, *parts)
    assert hashes(unbroken) == before


def finite(workdir):
    states = [state_of(workdir, step) for step in saved(workdir)]
    return all(np.isfinite(leaf).all() for state in states for leaf in state.values())


def test_a_batch_that_is_not_finite_ends_the_run_and_reaches_no_checkpoint(
    folder, tmp_path, monkeypatch, capsys
):
    real, count = Trainer.put, iter(range(1, 9))

    def put(self, batch):
        bad = {"weights": batch["weights"] * np.float32(math.nan)} if next(count) == 3 else {}
        return real(self, batch | bad)

    monkeypatch.setattr(Trainer, "put", put)
    assert train(folder, tmp_path, "--config.checkpoint.every_steps=1") == 4
    message = capsys.readouterr().err.splitlines()[-1]
    assert "step 3: loss nan" in message and "learning rate" in message
    assert saved(tmp_path) == [1, 2]
    assert finite(tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_an_update_that_is_not_finite_reaches_no_checkpoint(folder, tmp_path, capsys):
    # Loss and gradient of the first step are finite; what it makes of the parameters is not.
    changed = ("checkpoint.every_steps=1", "optimizer.learning_rate=3e38")
    changed += ("optimizer.weight_decay=1e9",)
    assert train(folder, tmp_path, *(f"--config.{override}" for override in changed)) == 4
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("recursia: step 1: its update is not finite; no checkpoint was saved")
    assert saved(tmp_path) == []


@pytest.mark.slow
def test_a_run_without_routers_writes_one_validation_loss(folder, tmp_path, capsys):
    sections = {"log": {"every_steps": 4, "sinks": []}, "checkpoint": {"every_steps": 0}}
    run = tiny_run(folder, "fixed", **sections, eval={"every_steps": 0})
    loop.train(run, tmp_path, {})
    written = rows(tmp_path)
    assert [("validation_loss" in row, row["step"]) for row in written] == [
        (False, 4),
        (False, 6),
        (True, 6),
    ]
    assert not any("causal" in name for row in written for name in row)
    assert len(written[-1]["validation_lens_loss"]) == 2
    assert not (tmp_path / "tensorboard").exists()
    assert saved(tmp_path) == [STEPS]
    said = capsys.readouterr().err.splitlines()
    assert f"training on train.txt (1 document, {len(prose(0, 800)) + 1:,} tokens)" in said
    assert f"validating on validation.txt (1 document, {len(prose(1, 60)) + 1:,} tokens)" in said
    assert any(line.startswith("compiling the training step for 8 devices") for line in said)


def test_a_run_without_a_validation_split_trains_and_says_so(folder, tmp_path, capsys):
    data = {"validation_text": [], "validation_fraction": 0.0}
    few = {"every_steps": 0, "prompts": ["red"], "sample_tokens": 2}
    train = {"num_steps": 2, "batch_size": 8, "seq_len": 16}
    data["text"] = [str(folder / "train.txt")]
    loop.train(tiny_run(folder, "fixed", data=data, eval=few, train=train), tmp_path, {})
    assert "validating on nothing" in capsys.readouterr().err
    assert not any("validation_loss" in row for row in rows(tmp_path)) and saved(tmp_path) == [2]
    assert len(rows(tmp_path, "samples.jsonl")) == 1
    assert cli.main(["eval", f"--workdir={tmp_path}"]) == 3
    assert "no validation split; give --text=FILE" in capsys.readouterr().err
