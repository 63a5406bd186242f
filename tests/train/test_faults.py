"""What breaks under a run, data or disk, costs no step that was made, and is said in one line."""

import contextlib
import json
import os
import resource
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from recursia.data.loader import Loader
from recursia.data.windows import Windows
from recursia.errors import DataError, StorageError
from recursia.evaluate import traces
from recursia.train.sinks.tensorboard import TensorBoard
from recursia.train.validation import Validation
from recursia.workdir import ending
from recursia.workdir.checkpoint import Checkpoints
from recursia.workdir.lines import Lines
from tests.helpers import readers
from tests.helpers.refusals import refused
from tests.helpers.runs import STEPS, differences, hashes, saved, train

DATA, STORAGE = 3, 6
QUIET = ("--config.log.sinks=",)


def last_line(capsys):
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


@pytest.mark.slow
def test_a_shard_cut_short_costs_no_step(folder, unbroken, tmp_path, monkeypatch, capsys):
    real, shard = Loader.batch, tmp_path / "data" / "train-00000.tokens"

    def batch(self, number):
        if number == 4:  # of step 5; batches are read ahead, some at the same time
            os.truncate(shard, 100)
        return real(self, number)

    monkeypatch.setattr(Loader, "batch", batch)
    assert train(folder, tmp_path, "--config.checkpoint.every_steps=0", *QUIET) == DATA
    line = last_line(capsys)
    (step,) = saved(tmp_path)
    # The reader of the next batch finds it, or that of the validation.
    assert f"{shard}: " in line and "has 100 bytes" in line and f"saved step {step}" in line
    assert 1 <= step <= 4
    monkeypatch.setattr(Loader, "batch", real)
    whole = (unbroken / "data" / "train-00000.tokens").read_bytes()
    shard.write_bytes(whole[:-1] + b"\0")  # of the right size, but not the same
    assert train(folder, tmp_path, *QUIET) == DATA
    assert "train-00000.tokens: has sha256 " in (line := last_line(capsys))
    assert "its bytes have changed" in line
    shard.write_bytes(whole)
    assert train(folder, tmp_path, *QUIET) == 0
    assert not differences(tmp_path, unbroken)


def test_a_validation_that_cannot_be_read_is_made_up(
    folder, unbroken, tmp_path, monkeypatch, capsys
):
    real, shard = Validation.row, tmp_path / "data" / "validation-00000.tokens"

    def row(self, params):
        whole[:] = [shard.read_bytes()]
        shard.unlink()
        return real(self, params)

    whole = []
    monkeypatch.setattr(Validation, "row", row)
    assert train(folder, tmp_path, "--config.checkpoint.every_steps=0", *QUIET) == DATA
    line = last_line(capsys)
    assert "validation-00000.tokens: missing" in line and "saved step 3" in line
    assert saved(tmp_path) == [3]
    monkeypatch.setattr(Validation, "row", real)
    shard.write_bytes(*whole)
    # It fails again after the last step: that step is saved, and its validation is owed too.
    fifth = iter([False, True])
    monkeypatch.setattr(Validation, "row", lambda *a: row(*a) if next(fifth) else real(*a))
    assert train(folder, tmp_path, *QUIET) == DATA
    assert "validating step 3, which is yet to be done" in capsys.readouterr().err
    assert saved(tmp_path)[-1] == STEPS
    monkeypatch.setattr(Validation, "row", real)
    shard.write_bytes(*whole)
    assert train(folder, tmp_path, *QUIET) == 0
    assert "validating step 6" in capsys.readouterr().err
    assert not differences(tmp_path, unbroken)
    before = hashes(tmp_path) | {ending.FILE: ""}  # which says when
    assert train(folder, tmp_path, *QUIET) == 0
    assert before == hashes(tmp_path) | {ending.FILE: ""}


@contextlib.contextmanager
def full(size):
    """Lets no file grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_command_writes_on_a_full_disk_is_whole_or_not_there(
    folder, tmp_path, command, refused_command
):
    facts = ("data", "facts", "--num_tokens=8", "--num_compositions=150", "--evidence=1")
    command(*facts, f"--output={tmp_path / 'facts'}")
    there, new = hashes(tmp_path), f"--output={tmp_path / 'new'}"
    prepare = ("data", "prepare", f"--input={folder / 'train.txt'}", "--tokenizer=byte")
    for typed in (
        (*facts, new),
        ("data", "tasks", f"--input={tmp_path / 'facts'}", new),
        (*prepare, new, "--num_workers=1"),
    ):
        with full(100):
            refused_command(*typed, parts=("cannot be written (File too large)",), code=6)
    choices, tokens = tmp_path / "choices.npz", np.zeros((2, 64), int)
    with full(100), refused(StorageError, f"--choices={choices}: cannot be written"):
        traces.write(choices, tokens, tokens, {})
    assert hashes(tmp_path) == there


def test_a_shard_that_shrinks_is_one_line(tmp_path):
    """Its fast form; a run that saves before it ends is `test_a_shard_cut_short...`."""
    readers.prepared(tmp_path / "data")
    split = Windows(str(tmp_path / "data"), "train", 2)
    os.truncate(shard := tmp_path / "data" / "train-00000.tokens", 2)
    with refused(DataError, f"{shard}: cannot be read (it has 2 bytes"):
        split[len(split) // 2 - 1]


def test_a_save_on_a_full_disk_leaves_what_was_saved(tmp_path):
    """Its fast form; a whole run is `test_a_save_on_a_full_disk_ends...`."""
    state = lambda step: {
        "params": {"a": jnp.asarray(np.random.default_rng(step).normal(size=5000))}
    }
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(1, state(1), {})
        checkpoints.finish()
        with full(2048), refused(StorageError, "cannot be saved", "the last whole step is 1"):
            checkpoints.save(2, state(2), {})
            checkpoints.finish()
        assert checkpoints.steps() == [1] and (tmp_path / "checkpoints" / "1").exists()


STANDS_STILL = """
import pathlib, sys, time
from recursia import stall
with stall.watching(pathlib.Path(sys.argv[1]), 1), stall.waiting("step", 0.5):
    time.sleep(60)
"""


def test_a_process_that_waits_far_too_long_ends_with_7_and_its_stacks(tmp_path):
    """Its fast form; two processes, of which one stops, are `tests/distributed/test_stall.py`."""
    script = [sys.executable, "-c", STANDS_STILL, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=50)
    assert done.returncode == 7 and done.stderr.count("\n") == 1, done.stderr
    assert "no step has ended for" in done.stderr
    assert '"<string>", line 5' in (tmp_path / "stacks-1.txt").read_text()


def test_lines_wait_for_a_full_disk(tmp_path, capsys):
    lines = Lines(tmp_path / "rows.jsonl")
    wanted = [json.dumps({"step": step, "text": "x" * 50}) + "\n" for step in range(100)]
    lines.write(wanted[0])
    with full(1000):
        for line in wanted[1:80]:
            lines.write(line)
        held = (tmp_path / "rows.jsonl").read_text()
        assert 0 < len(held) <= 1000 and held.endswith("\n")
    for line in wanted[80:]:
        lines.write(line)
    lines.close()
    assert (tmp_path / "rows.jsonl").read_text() == "".join(wanted)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "wait in memory" in said[0] and "complete" in said[1]


def test_curves_on_a_full_disk_block_nothing(tmp_path, capsys):
    board = TensorBoard(tmp_path, 0)
    with full(0):
        for step in range(50):
            board.write({"step": step, "loss": 1.0})
    board.write({"step": 50, "loss": 2.0})
    board.close()
    assert any(path.stat().st_size > 100 for path in (tmp_path / "tensorboard").iterdir())
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_a_save_on_a_full_disk_ends_a_run_with_what_was_saved(
    folder, unbroken, tmp_path, monkeypatch, capsys
):
    real, stack = Loader.batch, contextlib.ExitStack()

    def batch(self, number):
        if "2" in os.listdir(tmp_path / "checkpoints") and saved(tmp_path):
            stack.enter_context(full(2048))
        return real(self, number)

    monkeypatch.setattr(Loader, "batch", batch)
    with stack:
        more = ("--config.train.num_steps=40", "--config.log.every_steps=10")
        assert train(folder, tmp_path, *more) == STORAGE
    line = last_line(capsys)
    assert "cannot be saved" in line and "the last whole step is" in line
    monkeypatch.setattr(Loader, "batch", real)
    assert saved(tmp_path)
    assert train(folder, tmp_path, "--config.log.every_steps=1") == 0
