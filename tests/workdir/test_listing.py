"""Checkpoints are listed and verified while a run goes on."""

import contextlib
import json

import pytest

from recursia.workdir import digests, steps
from recursia.workdir.lock import Lock


@pytest.fixture
def verify(tmp_path):
    """The command that verifies a directory, which has steps 4 and 6."""
    for step in (4, 6):
        folder = tmp_path / "checkpoints" / str(step)
        (folder / "meta").mkdir(parents=True)
        (folder / "meta" / steps.META).write_text(json.dumps({"step": step}))
        digests.seal(folder)
    return "ckpt", "verify", f"--workdir={tmp_path}"


def test_a_step_that_a_living_run_saves_is_no_damaged_one(verify, command, tmp_path):
    (tmp_path / "checkpoints" / "6" / digests.COMMIT).unlink()
    with contextlib.closing(Lock(tmp_path, print)):
        assert command(*verify)[0] == "step 4: its files match their digests\n"
        assert "step 6 is being saved" in command(*verify, "--step=6", code=5)[1]
        assert "being saved" in command("ckpt", "ls", f"--workdir={tmp_path}")[0]
    command(*verify, code=1)


def test_nor_is_one_that_it_gives_up(verify, command, monkeypatch):
    real = steps.check
    gives_up = lambda folder: folder.name == "4" and steps.delete(folder)
    monkeypatch.setattr(steps, "check", lambda folder: gives_up(folder) or real(folder))
    assert command(*verify)[0] == "step 6: its files match their digests\n"
    command(*verify, "--step=4", code=5)
