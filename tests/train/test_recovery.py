"""A run goes on from its latest whole step, whatever became of its files; nothing is deleted."""

import contextlib
import hashlib
import json
import math
import os
import shutil

import numpy as np
import pytest

from recursia.data.verification import FILE as CHECKED
from recursia.train.validation import Validation
from recursia.workdir import digests, ending, recovery
from recursia.workdir.checkpoint import Checkpoints
from recursia.workdir.lock import Lock
from tests.helpers.refusals import assert_one_line
from tests.helpers.runs import (
    differences,
    hashes,
    rows,
    saved,
    train,
)


@pytest.fixture
def workdir(unbroken, tmp_path):
    """A copy of a finished run, with steps 4 and 6."""
    shutil.copytree(unbroken, tmp_path / "run")
    assert saved(tmp_path / "run") == [4, 6]
    return tmp_path / "run"


def latest(workdir, is_restart=False):
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        return recovery.latest(checkpoints, is_restart)


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path, at=0.5, bit=4):
    """Flips a bit of a file."""
    held = bytearray(path.read_bytes())
    held[int(at * len(held))] ^= 1 << bit
    path.write_bytes(held)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def older(step):
    """Makes a step what an older version saved: without digests."""
    (step / digests.FILE).unlink()
    (step / digests.COMMIT).write_text("Checkpoint commit was successful to there")


def renumber(step):
    """Puts the state of step 4 in the folder, as one that was renamed by hand."""
    shutil.rmtree(step)
    shutil.copytree(step.with_name("4"), step)


FAULTS = {
    "a bit": lambda step: flip(largest(step / "state")),
    "a bit of the digests": lambda step: flip(step / digests.FILE),
    "a bit of the commit file": lambda step: flip(step / digests.COMMIT),
    "truncated": lambda step: cut(largest(step / "state")),
    "emptied": lambda step: largest(step / "state").write_bytes(b""),
    "a file gone": lambda step: largest(step / "state").unlink(),
    "state/ gone": lambda step: shutil.rmtree(step / "state"),
    "meta/ gone": lambda step: shutil.rmtree(step / "meta"),
    "the digests gone": lambda step: (step / digests.FILE).unlink(),
    "the digests emptied": lambda step: (step / digests.FILE).write_bytes(b""),
    "a folder for a file": lambda step: (f := largest(step)).unlink() or f.mkdir(),
    "another step": renumber,
    "an older one without meta/": lambda step: older(step) or shutil.rmtree(step / "meta"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_step_is_named_and_set_aside_and_the_one_before_is_used(workdir, capsys, fault):
    step = workdir / "checkpoints" / "6"
    FAULTS[fault](step)
    before = hashes(workdir / "checkpoints")
    assert latest(workdir) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{step}: ") and line.endswith("; set aside as 6.unreadable")
    aside = {name.replace("6/", "6.unreadable/", 1): x for name, x in before.items()}
    assert hashes(workdir / "checkpoints") == aside


def test_every_flipped_bit_is_found(unbroken, tmp_path):
    step = tmp_path / "6"
    shutil.copytree(unbroken / "checkpoints" / "6", step)
    rng, tried = np.random.default_rng(), 0
    for path in [p for p in sorted(step.rglob("*")) if p.is_file()]:
        whole = path.read_bytes()
        for at, bit in zip(rng.random(3), rng.integers(8, size=3), strict=True):
            flip(path, at, int(bit))
            with pytest.raises(digests.Damaged):
                digests.check(step)
            path.write_bytes(whole)
            tried += 1
    assert tried > 30 and digests.check(step)


@pytest.mark.slow
@pytest.mark.parametrize("is_older", [False, True], ids=["with digests", "without"])
def test_a_run_goes_on_from_the_step_before_and_ends_as_the_unbroken_one(
    folder, unbroken, workdir, capsys, is_older
):
    step = workdir / "checkpoints" / "6"
    if is_older:  # the state cannot be read, which the restore finds
        older(step)
        for path in (step / "state" / "ocdbt.process_0" / "d").iterdir():
            path.write_bytes(b"")
    else:
        flip(largest(step / "state"))
    assert train(folder, workdir) == 0
    said = capsys.readouterr().err
    assert said.count("set aside as 6.unreadable") == 1
    assert f"resuming {workdir} at step 4" in said
    assert ("saved without digests" in said) is is_older
    assert not differences(workdir, unbroken)


def test_a_state_of_another_step_than_its_folder_is_set_aside(folder, workdir, capsys):
    checkpoints = workdir / "checkpoints"
    renumber(checkpoints / "6")
    older(checkpoints / "6")
    meta = checkpoints / "6" / "meta" / "metadata"
    meta.write_text(meta.read_text().replace('"step": 4', '"step": 6'))
    assert train(folder, workdir) == 0
    assert "its state is of step 4; set aside as 6.unreadable" in capsys.readouterr().err
    assert saved(workdir) == [4, 6]


def lose_markers(workdir):
    for commit in workdir.glob("checkpoints/*/commit_success.txt"):
        commit.unlink()


def kept(workdir):
    """Returns the digests of what a run keeps: all but which data were whole, and how it ended."""
    passing = (CHECKED, ending.FILE)
    return {name: x for name, x in hashes(workdir).items() if name not in passing}


LOST = {
    "no commit files": lose_markers,
    "no checkpoints/": lambda workdir: shutil.rmtree(workdir / "checkpoints"),
    "no history": lambda workdir: lose_markers(workdir) or (workdir / "checkpoints.jsonl").unlink(),
    "metrics alone": lambda workdir: (
        shutil.rmtree(workdir / "checkpoints"),
        (workdir / "checkpoints.jsonl").unlink(),
    ),
    "none that is whole": lambda workdir: [
        flip(largest(step)) for step in (workdir / "checkpoints").iterdir()
    ],
}


@pytest.mark.parametrize("loss", LOST)
def test_a_run_that_lost_its_steps_is_refused_and_loses_nothing_more(folder, workdir, capsys, loss):
    LOST[loss](workdir)
    before = kept(workdir)
    assert train(folder, workdir) == 5
    error = capsys.readouterr().err.splitlines()[-1] + "\n"
    assert_one_line(error, f"--workdir={workdir}", "holds no whole step", "--restart")
    after = {name.replace(".unreadable", ""): x for name, x in kept(workdir).items()}
    assert after == before


def test_a_restart_begins_at_step_0_and_keeps_the_old_files(folder, unbroken, workdir, capsys):
    assert train(folder, workdir, "--restart") == 0  # of a whole run: nothing
    assert "finished at step 6; nothing to do" in capsys.readouterr().err
    lose_markers(workdir)
    before = kept(workdir)
    assert train(folder, workdir, "--restart") == 0
    assert f"the old files in {workdir / 'aside'}" in capsys.readouterr().err
    aside = hashes(workdir / "aside")
    assert before.items() <= (hashes(workdir) | aside).items()
    assert "metrics.jsonl" in aside and "config.json" in aside
    assert rows(workdir) == rows(unbroken) and saved(workdir) == [4, 6]


@pytest.mark.parametrize("has_digests", [False, True])
def test_a_run_killed_in_its_first_save_begins_again(folder, workdir, capsys, has_digests):
    checkpoints = workdir / "checkpoints"
    shutil.rmtree(checkpoints / "6")
    if has_digests:  # killed before the last of its files had its name
        commit = checkpoints / "4" / digests.COMMIT
        shutil.copy(commit, checkpoints / "4" / digests.PENDING)
        commit.unlink()
    else:
        older(checkpoints / "4")
        (checkpoints / "4" / digests.COMMIT).unlink()
    (workdir / "checkpoints.jsonl").unlink()
    (workdir / "metrics.jsonl").write_text('{"step": 4}\n')
    assert latest(workdir) is None
    assert "its save was not finished; set aside as 4.unfinished" in capsys.readouterr().err
    assert [path.name for path in checkpoints.iterdir()] == ["4.unfinished"]


@pytest.mark.parametrize("verb", [["eval", "--num_batches=1"], ["generate", "--prompt=a"]])
def test_who_only_reads_changes_nothing(workdir, command, verb):
    checkpoints = workdir / "checkpoints"
    flip(largest(checkpoints / "6"))
    before = kept(workdir)
    ran = [*verb, f"--workdir={workdir}"]
    out, err = command(*ran, "--step=6", code=5)
    assert out == ""
    assert_one_line(err, str(checkpoints / "6"), "digest differs")
    _, err = command(*ran)
    assert f"{checkpoints / '6'}: " in err and "reading the step before" in err
    assert kept(workdir) == before


def test_checkpoints_are_listed_and_verified(workdir, command):
    checkpoints = workdir / "checkpoints"
    assert command("ckpt", "verify", f"--workdir={workdir}")[0].splitlines() == [
        "step 4: its files match their digests",
        "step 6: its files match their digests",
    ]
    older(checkpoints / "4")
    flip(largest(checkpoints / "6"))
    out, _ = command("ckpt", "verify", f"--workdir={workdir}", code=1)
    first, second = out.splitlines()
    assert "no digests" in first and "digest differs" in second
    command("ckpt", "verify", f"--workdir={workdir}", "--step=5", code=5)
    shutil.move(checkpoints / "4", checkpoints / "4.unreadable")
    listed = json.loads(command("ckpt", "ls", f"--workdir={workdir}", "--json")[0])["checkpoints"]
    assert [(row["step"], row["verified"]) for row in listed] == [(6, False), (None, None)]
    validated = [row for row in rows(workdir) if "validation_loss" in row][-1]
    assert listed[0]["validation_loss"] == pytest.approx(validated["validation_loss"])
    table = command("ckpt", "ls", f"--workdir={workdir}", "--no_reading")[0].splitlines()
    assert table[0].split() == ["step", "age", "size", "validation_loss", "files"]
    assert "not read" in table[1] and "set aside" in table[2]


@pytest.mark.slow
def test_the_best_step_outlives_what_a_diverged_run_saves(folder, tmp_path, monkeypatch):
    losses = iter([1.5, 1.0, 80.0, 90.0, math.nan, 1e6])
    monkeypatch.setattr(Validation, "row", lambda *_: {"validation_loss": next(losses)})
    monkeypatch.setattr(Validation, "samples", lambda *_: ())
    changed = ("checkpoint.every_steps=1", "checkpoint.keep=1", "checkpoint.keep_every=3")
    changed += ("eval.every_steps=1",)
    assert train(folder, tmp_path, *(f"--config.{each}" for each in changed)) == 0
    assert saved(tmp_path) == [2, 3, 6]


def test_a_second_run_in_a_directory_is_refused_and_changes_nothing(folder, workdir, capsys):
    with contextlib.closing(Lock(workdir, print)):
        before = hashes(workdir)
        assert train(folder, workdir, "--config.train.num_steps=7") == 5
        parts = (f"--workdir={workdir}", f"process {os.getpid()} on ", "give another workdir")
        assert_one_line(capsys.readouterr().err, *parts)
        assert hashes(workdir) == before
    assert train(folder, workdir) == 0


def test_nothing_outside_a_step_is_read_for_its_digests(tmp_path):
    step = tmp_path / "1"
    (step / "meta").mkdir(parents=True)
    (step / "meta" / "metadata").write_text("{}")
    digests.seal(step)
    assert digests.check(step)
    (tmp_path / "secret").write_text("")
    listed = (step / digests.FILE).read_text().replace("meta/metadata", "../secret")
    (step / digests.FILE).write_text(listed)
    (step / digests.COMMIT).unlink()
    digest = hashlib.sha256(listed.encode()).hexdigest()
    (step / digests.COMMIT).write_text(f"{digest}  {digests.FILE}\n")
    with pytest.raises(digests.Damaged, match="names no file of the step"):
        digests.check(step)
