"""A state is what a trial's directory says, which its process writes."""

import json
import os
import subprocess
import sys
import time

import pytest

from recursia.errors import DataError
from recursia.sweep import states
from recursia.workdir import ending, lock


def test_a_state_is_what_the_directory_says(tmp_path):
    assert states.of(tmp_path) == ("pending", "")
    (tmp_path / "config.json").touch()
    assert states.of(tmp_path) == ("stopped", "")
    stopped, failed = dict.fromkeys((75, 130, 7), "stopped"), dict.fromkeys((1, 3, 6), "failed")
    for code, expected in {0: "finished", 4: "diverged", **stopped, **failed}.items():
        ending.write(tmp_path, code, "two\nlines")
        why = "two lines" if expected in ("diverged", "failed") else ""
        assert states.of(tmp_path) == (expected, why if expected != "finished" else "two lines")
    ending.write(tmp_path, 75, "")
    (tmp_path / states.PRUNING).touch()
    assert states.of(tmp_path)[0] == "pruned"
    ending.write(tmp_path, 0, "")
    assert states.of(tmp_path)[0] == "finished"
    held = lock.Lock(tmp_path, print)
    assert states.of(tmp_path)[0] == "running"
    held.close()
    assert states.of(tmp_path)[0] == "finished"


def test_a_start_that_is_refused_does_not_undo_a_finished_run(tmp_path):
    for code in (75, 0):
        ending.write(tmp_path, code, "")
        with pytest.raises(DataError), ending.recorded(tmp_path):
            raise DataError("there is none")
        expected = (0, "") if code == 0 else (DataError.exit_code, "there is none")
        assert ending.read(tmp_path) == expected
    with pytest.raises(KeyError), ending.recorded(tmp_path):
        ending.begin(tmp_path)
        raise KeyError("x")
    assert ending.read(tmp_path) == (ending.CRASHED, "KeyError: 'x'")
    with ending.recorded(tmp_path):
        pass
    assert ending.read(tmp_path) == (0, "")


def test_a_lock_of_a_process_that_is_no_more_is_not_live(tmp_path, monkeypatch):
    held = lock.Lock(tmp_path, print)
    text = (tmp_path / lock.FILE).read_text()
    held.close()
    (tmp_path / lock.FILE).write_text(text)
    assert lock.is_live(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    values = json.loads(text)
    (tmp_path / lock.FILE).write_text(json.dumps({**values, "process": ended.pid}))
    assert not lock.is_live(tmp_path)
    elsewhere = json.dumps({**values, "process": ended.pid, "machine": "another"})
    (tmp_path / lock.FILE).write_text(elsewhere)
    assert lock.is_live(tmp_path), "until it has been silent for long"
    past = time.time() - lock.STALE_SECONDS - 1
    os.utime(tmp_path / lock.FILE, (past, past))
    assert not lock.is_live(tmp_path)
