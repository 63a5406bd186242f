"""Sinks get what a run writes, in its order; one that fails or waits costs the run nothing."""

import sys
import threading
import time
import types

import pytest

from recursia import cli
from recursia.errors import ConfigError
from recursia.train.sinks import aside, opening
from recursia.train.sinks.aside import Aside
from recursia.train.sinks.sink import Sink
from recursia.train.writer import Writer
from tests.helpers import runs
from tests.helpers.refusals import refused

OWN = """
from recursia.train.sinks.sink import Sink


class Kept(Sink):
    def __init__(self, workdir, start, run):
        self.file = (workdir / "own.txt").open("w")
        self.file.write(f"{start} {run.train.num_steps}\\n")

    def write(self, row):
        self.file.write(f"{row['step']} {row['loss']}\\n")

    def sample(self, step, prompt, text):
        self.file.write(f"{prompt}{text}\\n")

    def close(self):
        self.file.close()
"""


def run_with(folder, *sinks):
    runs.write_text(folder)
    return runs.tiny_run(folder, log={"sinks": list(sinks)})


class Failing(Sink):
    def write(self, row):
        raise RuntimeError("no\nnetwork")


def test_a_class_of_the_users_gets_rows_and_samples_in_order(tmp_path, monkeypatch):
    (tmp_path / "own_sinks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_sinks", raising=False)
    run, workdir = run_with(tmp_path, "own_sinks.Kept"), tmp_path / "run"
    workdir.mkdir()
    writer = Writer(workdir, 3, opening.opened(run, workdir, 3))
    for step in (4, 5):
        writer.write({"step": step, "loss": 0.5})
    writer.sample(5, "red", " blue")
    writer.close()
    assert (workdir / "own.txt").read_text() == "3 6\n4 0.5\n5 0.5\nred blue\n"


@pytest.mark.parametrize("is_aside", [True, False])
def test_a_sink_that_fails_is_one_line_and_the_files_are_whole(tmp_path, capsys, is_aside):
    run = run_with(tmp_path)
    failing = Aside("failing", Failing, tmp_path, 0, run) if is_aside else Failing(tmp_path, 0, run)
    writer = Writer(tmp_path, 0, [failing])
    for step in range(1, 30):
        writer.write({"step": step, "loss": 0.5})
    writer.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 29
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "RuntimeError: no network" in said


def test_a_sink_that_waits_holds_up_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(aside, "MOST_WAITING", 5)
    monkeypatch.setattr(aside, "PATIENCE", 0.01)
    goes_on = threading.Event()

    class Waiting(Sink):
        def write(self, row):
            goes_on.wait()

    sink = Aside("waiting", Waiting, tmp_path, 0, run_with(tmp_path))
    for step in range(50):
        sink.write({"step": step})
    sink.close()
    goes_on.set()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "5 rows wait" in said


@pytest.mark.parametrize("name", ["nothing", "json_lines", "aside", "os.path", "no_such_module.X"])
def test_an_unknown_sink_is_refused_before_anything_is_computed(tmp_path, name):
    with refused(ConfigError, "config.log.sinks: ", name):
        opening.check(run_with(tmp_path, name))


def test_the_command_line_takes_sinks_by_name(tmp_path, capsys):
    runs.write_text(tmp_path)
    runs.write_config(tmp_path / "tiny.py", runs.values(tmp_path))
    given = runs.command(tmp_path, tmp_path / "run", "--config.log.sinks=nothing")
    assert cli.main(given) == 2
    assert "no sink 'nothing'; takes tensorboard, wandb" in capsys.readouterr().err


def test_wandb_is_told_the_settings_the_steps_and_the_same_name_on_resume(tmp_path, monkeypatch):
    begun, logged = [], []
    run = types.SimpleNamespace(
        define_metric=lambda *a, **k: None, log=logged.append, finish=lambda: logged.append("end")
    )
    library = types.ModuleType("wandb")
    library.init = lambda **how: begun.append(how) or run
    library.Settings, library.Table = dict, dict
    library.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", library)
    for start in (0, 2):
        (sink,) = opening.opened(run_with(tmp_path, "wandb"), tmp_path, start)
        sink.write({"step": start + 1, "loss": 0.5, "kept": [1.0, 0.5]})
        sink.sample(start + 1, "red", "blue")
        sink.close()
    assert logged[0] == {"step": 1, "loss": 0.5, "kept/0": 1.0, "kept/1": 0.5}
    assert logged[1]["samples"]["data"] == [[1, "red", "blue"]] and logged[2] == "end"
    first, second = begun
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert first["config"]["train"]["num_steps"] == 6 and first["name"] == tmp_path.name


@pytest.mark.slow
def test_wandb_writes_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (sink,) = opening.opened(run_with(tmp_path, "wandb"), tmp_path, 0)
    for step in range(1, 4):
        sink.write({"step": step, "loss": 0.5, "tokens_kept": [1.0, 0.5]})
    sink.sample(3, "red", "blue")
    sink.close()
    assert not sink._is_lost
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    end = time.monotonic() + 30  # a process of its own writes it
    while b"tokens_kept/1" not in (raw := file.read_bytes()) and time.monotonic() < end:
        time.sleep(0.1)
    assert b"tokens_kept/1" in raw and b"num_steps" in raw
    assert file.stem == f"run-{(tmp_path / 'wandb.id').read_text().strip()}"
