"""A sweep's directory in a bucket does what one on disk does."""

import contextlib
import json

import pytest

from recursia import buckets
from recursia.objects import BucketPath
from recursia.sweep import declaration, directory, engines, journal, local
from recursia.workdir import ending
from recursia.workdir import place as where
from recursia.workdir.lease import Lease
from tests.helpers import trials

RATES = trials.RATES.format("(0.1, 0.01)")


@pytest.fixture
def sweep(tmp_path, bucket, monkeypatch, command):
    """Runs a verb of a sweep of two trials without a model; returns what it said."""
    config = trials.write(tmp_path, RATES)
    monkeypatch.setattr(local, "FAR_SECONDS", 0.5)

    def run(*arguments, code=0, num_steps=2, **behaviour):
        trials.without_model(tmp_path, monkeypatch, num_steps, **behaviour)
        is_verb = arguments[:1] and arguments[0][:1] != "-"
        given = () if is_verb else (f"--config={config}",)
        return command("sweep", *arguments, *given, f"--workdir={bucket}/s", code=code)

    run.place = buckets.path(f"{bucket}/s")
    return run


def ended(place, code, names=None):
    """Writes how trials ended, as they do."""
    for name in directory.read(place).trials if names is None else names:
        ending.write(directory.read(place).folder(name), code, "it was told to")


@pytest.mark.slow
def test_commands_states_and_results_are_those_of_a_directory_on_disk(sweep, tmp_path, command):
    shown, _ = sweep("--runner=print")
    names = directory.read(sweep.place).trials
    assert [line.split()[-1] for line in shown.splitlines()] == [
        f"--workdir={sweep.place}/trials/{name}" for name in names
    ]
    here, none = tmp_path / "here", {}
    declared = declaration.read(str(tmp_path / "tiny.py"), none)
    assert directory.write(here, declared, none) == directory.write(sweep.place, declared, none)
    for place in (here, sweep.place):
        ended(place, 4, names[:1])
        rows = place / "trials" / names[1] / "metrics.jsonl"
        for step in (1, 2):
            row = {"step": step, "loss": 2.0, "validation_loss": 1.0 / step}
            where.of(rows).append(rows, json.dumps(row) + "\n")
        ended(place, 0, names[1:])
    assert json.loads(sweep("status", "--json")[0])["counts"] == {"finished": 1, "diverged": 1}
    for verb in ("status", "results"):
        ours, theirs = (
            json.loads(command("sweep", verb, "--json", f"--workdir={place}")[0])
            for place in (sweep.place, here)
        )
        assert ours == theirs
    assert sweep("resume")[0] == "", "nothing is left"


def test_a_journal_has_every_entry_once_whoever_writes_and_whatever_answers_are_lost(
    bucket, monkeypatch
):
    first, second = (journal.Journal(buckets.path(f"{bucket}/j")) for _ in range(2))
    for number in range(20):
        (first, second)[number % 3 == 0].append_logs([{"n": number}])

    def lost(self, data, is_new=False, real=BucketPath.write_bytes):
        real(self, data, is_new)
        raise FileExistsError  # as a second try is answered, where the first was written

    with monkeypatch.context() as patch:
        patch.setattr(BucketPath, "write_bytes", lost)
        first.append_logs([{"n": 20}])
    expected = [{"n": number} for number in range(21)]
    assert first.read_logs(0) == second.read_logs(0) == expected
    assert journal.Journal(buckets.path(f"{bucket}/j")).read_logs(19) == expected[19:]


def test_trials_are_sent_by_one_process_at_a_time_and_once(sweep, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for name, answer in (("sbatch", "Submitted batch job 71"), ("squeue", "")):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\necho {name} >>{tmp_path}/sent\necho '{answer}'\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    options = ("--runner=slurm", "--topology=cpu:1", f"--shared={tmp_path}")
    sweep(*options)
    (first,) = engines.sent(sweep.place)
    assert first.job == "71" and len(first.tasks) == 2
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text(f"#!/bin/sh\necho '{first.name} 0'\necho '{first.name} 1'\n")
    assert "nothing to send" in sweep("resume")[1]
    with contextlib.closing(Lease(sweep.place / "submissions", print)):
        assert "another process is sending" in sweep("resume", code=2)[1]
    assert (tmp_path / "sent").read_text().split().count("sbatch") == 1


@pytest.mark.slow
def test_trials_run_once_in_a_bucket_and_a_stopped_one_goes_on(sweep, tmp_path):
    """With their logs, and a failure that could not be recorded is recorded."""
    _, said = sweep("--jobs=2", code=1, **{"0_1": "crash"})
    assert "1 finished, 1 failed" in said and "RuntimeError: no such thing" in said
    sweep("resume", "--retry_failed")
    found = directory.read(sweep.place)
    assert sorted(len(each) for each in trials.starts(sweep.place).values()) == [1, 2]
    logs = [(found.folder(name) / "log.txt").read_text() for name in found.trials]
    assert any("RuntimeError: no such thing" in log for log in logs)
    assert "2 trials: 2 finished" in sweep("resume")[1]
    report = [f"--out={sweep.place}/best.svg"]
    assert "best.svg: drawn" in sweep("report", *report)[0]
    assert (sweep.place / "best.svg").read_bytes().startswith(b"<?xml")
    assert json.loads((sweep.place / "best.json").read_text())["states"] == {"finished": 2}
    assert "there already" in sweep("report", *report, code=2)[1]
    sweep("report")
    assert (sweep.place / "report.png").exists()
    sweep("results", f"--csv={sweep.place}/all.csv")
    assert (sweep.place / "all.csv").read_text().count("\n") == 3


SEARCH = """
from recursia.sweep import Search
SEARCH = Search(num_trials=2, seed=3)
def search(trial):
    rate = trial.suggest_float("rate", 1e-3, 1, log=True)
    return {"optimizer.learning_rate": float(f"{rate:.2g}"), "labels": {"rate": rate}}
"""


@pytest.mark.slow
def test_a_search_in_a_bucket_runs_what_one_on_disk_runs(sweep, tmp_path, command, monkeypatch):
    config = trials.write(tmp_path, SEARCH)
    trials.without_model(tmp_path, monkeypatch, num_steps=2)
    for place in (sweep.place, tmp_path / "here"):
        command("sweep", f"--config={config}", f"--workdir={place}", "--jobs=1")
    ours, theirs = (directory.read(place) for place in (sweep.place, tmp_path / "here"))
    assert ours.trials[0] == theirs.trials[0] and len(ours.trials) == len(theirs.trials) == 2
    assert not any((sweep.place / "workers").iterdir())
    again = ("sweep", "resume", f"--workdir={sweep.place}")
    assert "2 trials: 2 finished" in command(*again)[1]
    assert [len(each) for each in trials.starts(sweep.place).values()] == [1, 1]
