"""Trials on this machine: each once, each on CPUs of its own, and again until all have a result."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from recursia import console
from recursia.errors import DataError
from recursia.sweep import directory, local, processes, states, view
from recursia.workdir import ending, lock
from tests.helpers import trials

THREE = trials.RATES.format("(0.1, 0.01, 1)")
LIMIT_SECONDS = 60


@pytest.fixture
def sweep(tmp_path, monkeypatch, command):
    """Runs a verb of sweeps on three trials without a model; returns what it said."""
    config = trials.write(tmp_path, THREE)

    def run(*arguments, code=0, num_steps=3, **behaviour):
        trials.without_model(tmp_path, monkeypatch, num_steps, **behaviour)
        verb = arguments if arguments[:1] and arguments[0][:1] != "-" else ()
        config_option = () if verb else (f"--config={config}",)
        workdir = f"--workdir={tmp_path / 's'}"
        return command("sweep", *arguments, *config_option, workdir, code=code)

    return run


def by_rate(place):
    """Returns the state of each trial by its learning rate."""
    found = directory.read(place)
    rate = lambda name: found.trial(name).overrides["optimizer.learning_rate"]
    return {rate(name): states.of(found.folder(name))[0] for name in found.trials}


def test_each_trial_runs_once_and_is_never_run_again(sweep, tmp_path):
    _, said = sweep("--jobs=2")
    assert "3 trials: 3 finished" in said
    for again in ((), ("resume",)):
        _, said = sweep(*again)
        assert "3 trials: 3 finished" in said
    assert [len(each) for each in trials.starts(tmp_path / "s").values()] == [1, 1, 1]
    assert all((p / "log.txt").exists() for p in (tmp_path / "s" / "trials").iterdir())


def test_trials_side_by_side_share_no_cpu(sweep, tmp_path):
    cpus = processes.cpus()
    if len(cpus) < 2:
        pytest.skip("one CPU")
    sweep("--jobs=2", "--threads=1")
    started = [each[0] for each in trials.starts(tmp_path / "s").values()]
    assert {tuple(each["cpus"]) for each in started} == {(cpus[0],), (cpus[1],)}
    assert {each["threads"] for each in started} == {"1"}
    assert processes.cpus() == cpus, "this process keeps its own"


@pytest.mark.parametrize(
    ("trials", "jobs", "threads", "expected"),
    [
        (9, None, None, (4, 1)),
        (2, None, None, (2, 2)),
        (1, None, None, (1, 4)),
        (9, None, 2, (2, 2)),
        (9, 3, None, (3, 1)),
        (9, 8, None, (8, 1)),
        (9, None, 8, (1, 8)),
        (0, None, None, (1, 4)),
    ],
)
def test_cpus_are_divided_and_not_shared(trials, jobs, threads, expected, monkeypatch):
    monkeypatch.setattr(processes, "cpus", lambda: [3, 4, 6, 7])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert local.shared(trials, jobs, threads) == expected
    number, each = expected
    given = [cpu for share in processes.shares(number, each) for cpu in share.cpus]
    assert len(given) == len(set(given)) or number * each > 4
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert local.shared(trials, jobs, threads)[0] == (jobs or 1)


def test_divergence_is_a_result_and_a_failure_is_tried_again_only_if_wanted(sweep, tmp_path):
    _, said = sweep(code=1, **{"0_1": "diverge", "1_0": "no data", "0_01": "crash"})
    assert by_rate(tmp_path / "s") == {0.1: "diverged", 0.01: "failed", 1: "failed"}
    assert "data.path: there is none" in said and "RuntimeError: no such thing" in said
    sweep("resume", code=1)
    assert sorted(len(each) for each in trials.starts(tmp_path / "s").values()) == [1, 1, 1]
    sweep("resume", "--retry_failed")
    assert by_rate(tmp_path / "s") == {0.1: "diverged", 0.01: "finished", 1: "finished"}
    assert sorted(len(each) for each in trials.starts(tmp_path / "s").values()) == [1, 2, 2]


def test_a_trial_that_was_stopped_and_crashes_before_it_begins_has_failed(sweep, tmp_path):
    sweep("--runner=print")
    for folder in (tmp_path / "s" / "trials").iterdir():
        ending.write(folder, 75, "stopped")
    sweep("--runner=local", code=1, **{"0_1": "crash"})
    assert by_rate(tmp_path / "s") == {0.1: "failed", 0.01: "finished", 1: "finished"}


def test_status_says_why_in_a_table_and_as_one_object(sweep, tmp_path):
    sweep(code=1, **{"1_0": "no data"})
    table, _ = sweep("status")
    assert "data.path: there is none" in table and "3 trials: 2 finished, 1 failed" in table
    assert "optimizer.learning_rate" in table and "failed: data.path" in table
    shown = json.loads(sweep("status", "--json")[0])
    assert shown["counts"] == {"finished": 2, "failed": 1}
    rows = {row["overrides"]["optimizer.learning_rate"]: row for row in shown["trials"]}
    assert rows[1]["state"] == "failed" and rows[1]["why"] == "data.path: there is none"
    assert rows[0.01]["step"] == rows[0.01]["num_steps"] == 3 and rows[0.01]["job"] is None


def test_a_terminal_shows_the_trials_as_they_run(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "is_live", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich knows a terminal
    monkeypatch.setattr(view, "EVERY", 0)
    _, said = sweep("--jobs=1", num_steps=20)
    assert re.search(r"running\S* +\d+/20", said) and "2 pending, 1 running" in said
    assert said.endswith("3 trials: 3 finished\n")


def test_results_are_ranked_and_have_a_column_for_all_that_trials_have(sweep, tmp_path):
    sweep(**{"0_1": "diverge"})
    shown = json.loads(sweep("results", "--json")[0])
    rates = [row["overrides"]["optimizer.learning_rate"] for row in shown["trials"]]
    assert rates == [0.01, 0.1, 1] and shown["metric"] == "validation_loss"
    best = shown["trials"][0]
    assert best["metrics"] == {
        "loss": 0,
        "validation_loss": pytest.approx(1 / 3),
        "best_validation_loss": pytest.approx(1 / 3),
    }
    assert best["curve"] == [[1, 1], [2, 0.5], [3, pytest.approx(1 / 3)]]
    assert best["tokens"] == 3 * 8 * 16 and best["seconds"] == 1
    assert best["training_flops"] > 0 and best["unique_parameters"] > 0
    sweep("results", f"--csv={tmp_path / 'all.csv'}")
    header, *rows = (tmp_path / "all.csv").read_text().splitlines()
    assert header.startswith("name,state,config,steps,tokens,") and len(rows) == 3
    assert "config.optimizer.learning_rate" in header and header.endswith(",why")
    assert rows[1].endswith("step 1: loss nan")
    assert sweep("results", "--csv=-")[0].splitlines() == [header, *rows]
    table, _ = sweep("results", "--metric=loss")
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["1", "2", "3"]
    _, said = sweep("results", "--metric=los", code=2)
    assert said.count("\n") == 1 and "validation_loss" in said


def test_a_number_that_is_not_finite_is_null_in_json(tmp_path, sweep):
    sweep()
    path = next((tmp_path / "s" / "trials").iterdir()) / "metrics.jsonl"
    path.write_text('{"step": 3, "loss": NaN, "validation_loss": Infinity}\n')
    shown, _ = sweep("results", "--json")
    assert "NaN" not in shown and "Infinity" not in shown
    assert json.loads(shown)["trials"][-1]["metrics"]["loss"] is None, "which comes last"


def test_results_outlive_the_file_that_declares_them(sweep, tmp_path, command):
    sweep("--runner=print")
    (tmp_path / "tiny.py").unlink()
    shown = json.loads(command("sweep", "results", "--json", f"--workdir={tmp_path / 's'}")[0])
    assert [row["state"] for row in shown["trials"]] == ["pending"] * 3
    assert shown["trials"][0]["unique_parameters"] == 0


HOLDS = """
import pathlib, sys, time
from recursia.workdir import ending, lock
folder = pathlib.Path(sys.argv[1])
held = lock.Lock(folder, print)
print("held", flush=True)
time.sleep(1.5)
if sys.argv[2] == "fails":
    ending.write(folder, 3, "no data")
held.close()
"""


def test_a_trial_that_another_process_trains_is_waited_for(sweep, tmp_path):
    """As after the end of the sweep's process alone: the two never train one trial at once.

    One that stops there goes on here, one that fails there does not.
    """
    sweep("--runner=print")
    folders, others = sorted((tmp_path / "s" / "trials").iterdir()), []
    for folder, what in zip(folders, ("stops", "fails"), strict=False):
        command = [sys.executable, "-c", HOLDS, folder, what]
        others.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert others[-1].stdout.readline() == b"held\n"
        assert states.of(folder) == (states.RUNNING, "")
    start = time.monotonic()
    _, said = sweep("--runner=local", code=1)
    assert time.monotonic() - start > 1 and [each.wait(LIMIT_SECONDS) for each in others] == [0, 0]
    assert "2 finished, 1 failed" in said and states.of(folders[1]) == ("failed", "no data")
    counts = {name: len(each) for name, each in trials.starts(tmp_path / "s").items()}
    assert counts == {folders[0].name: 1, folders[2].name: 1}


def stopped_after_a_row(place, number, process):
    """Sends a signal to a process once two trials have a row of metrics."""
    until = time.monotonic() + LIMIT_SECONDS
    while len(list(place.glob("trials/*/metrics.jsonl"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process, number)


def ends_as_if_unbroken(sweep, place, num_starts):
    sweep("resume", "--runner=local", num_steps=40)
    assert set(by_rate(place).values()) == {"finished"}
    for path in (place / "trials").glob("*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == list(range(1, 41)), "each step once"
    counts = sorted(len(each) for each in trials.starts(place).values())
    assert counts == [1, num_starts, num_starts]


ALSO = [pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGINT, signal.SIGUSR1)]


@pytest.fixture
def number(request):
    """A signal that is not ignored, whatever the parent of this process ignores."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, *ALSO], indirect=True)
def test_a_signal_stops_all_trials_and_they_go_on_where_they_were(number, sweep, tmp_path):
    place = tmp_path / "s"
    sender = threading.Thread(target=stopped_after_a_row, args=(place, number, os.getpid()))
    sender.start()
    _, said = sweep("--jobs=2", num_steps=40, code=75)
    sender.join()
    assert said.splitlines()[-1].endswith("1 pending, 2 stopped; run the same command to go on")
    assert sorted(by_rate(place).values()) == ["pending", "stopped", "stopped"]
    ends_as_if_unbroken(sweep, place, num_starts=2)


RUN = "import sys\nfrom recursia import cli\nfrom recursia.sweep import processes\n"
RUN += "processes.PROGRAM = (sys.executable, {!r})\nsys.exit(cli.main(sys.argv[1:]))"


@pytest.mark.slow
def test_trials_outlive_a_sweep_that_is_killed_and_the_next_one_waits_for_them(sweep, tmp_path):
    place = tmp_path / "s"
    sweep("--runner=print", "--threads=1", num_steps=40)
    arguments = ["sweep", "resume", f"--workdir={place}", "--runner=local", "--jobs=2"]
    program = RUN.format(processes.PROGRAM[1])
    started = subprocess.Popen([sys.executable, "-c", program, *arguments])
    stopped_after_a_row(place, signal.SIGKILL, started.pid)
    assert started.wait(LIMIT_SECONDS) == -signal.SIGKILL
    ends_as_if_unbroken(sweep, place, num_starts=1)


def test_print_writes_commands_that_can_be_run_by_hand(sweep, tmp_path):
    shown, _ = sweep("--runner=print")
    lines = shown.splitlines()
    assert len(lines) == 3
    place = f"{tmp_path}/s/trials"
    for line, name in zip(lines, directory.read(tmp_path / "s").trials, strict=True):
        rate = directory.read(tmp_path / "s").trial(name).overrides["optimizer.learning_rate"]
        assert line == (
            f"recursia train --config={tmp_path}/tiny.py "
            f"--config.optimizer.learning_rate={rate} --workdir={place}/{name}"
        )
        done = pathlib.Path(place, name)
        ending.write(done, 0, "")
    assert sweep("resume")[0] == "", "nothing is left"


def test_a_sweep_needs_a_folder_of_its_own(sweep, tmp_path, refused_command):
    config = f"--config={tmp_path / 'tiny.py'}"
    for place in ("gs://b", "s3:/b/s", "http://b/s"):
        refused_command("sweep", config, f"--workdir={place}", parts=[place, "://BUCKET/FOLDER"])
    (tmp_path / "config.json").touch()
    place = f"--workdir={tmp_path}"
    refused_command("sweep", config, "--runner=print", place, parts=["holds a run"])


def test_a_dry_run_writes_nothing(sweep, tmp_path):
    shown, _ = sweep("--dry_run")
    assert shown.count("\n") == 3 and not (tmp_path / "s").exists()


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
