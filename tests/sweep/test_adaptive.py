"""Adaptive search: its results, pruning, and the trials of workers that are no more."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import optuna
import pytest

from recursia.sweep import adaptive, declaration, directory, processes, states, study
from tests.helpers import trials

SEARCH = """
from recursia.sweep import Search
SEARCH = Search({settings})
def search(trial):
    rate = trial.suggest_float("rate", 1e-3, 1, log=True)
    return {{"optimizer.learning_rate": float(f"{{rate:.2g}}"), "labels": {{"rate": rate}}}}
"""
CHOICE = """
from recursia.sweep import Search
SEARCH = Search(num_trials={number})
def search(trial):
    return {{"optimizer.learning_rate": trial.suggest_categorical("rate", {rates})}}
"""
LIMIT_SECONDS = 60


@pytest.fixture
def search(tmp_path, monkeypatch, command):
    """Runs a search without a model, or goes on with it; returns what it said."""

    def run(text, *arguments, code=0, num_steps=3, **behaviour):
        config = trials.write(tmp_path, text) if text else ""
        trials.without_model(tmp_path, monkeypatch, num_steps, **behaviour)
        given = (f"--config={config}",) if text else ()
        verb = () if text else ("resume",)
        command_line = ("sweep", *verb, *given, f"--workdir={tmp_path / 's'}", *arguments)
        return command(*command_line, code=code)[1]

    return run


def told(place):
    backend = optuna.storages.journal.JournalFileBackend(str(place / study.JOURNAL))
    return optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))


def of_state(place, state):
    return [each for each in told(place).trials if each.state.name == state]


def test_a_search_runs_as_many_trials_as_declared_and_then_no_more(search, tmp_path):
    text = SEARCH.format(settings="num_trials=3, seed=3")
    assert "3 trials: 3 finished" in search(text)
    complete = of_state(tmp_path / "s", "COMPLETE")
    assert len(complete) == 3
    for each in complete:
        rate = directory.read(tmp_path / "s").trial(each.user_attrs[study.NAME]).overrides
        assert rate["optimizer.learning_rate"] == float(f"{each.params['rate']:.2g}")
    search("")
    assert len(told(tmp_path / "s").trials) == 3
    assert all(len(each) == 1 for each in trials.starts(tmp_path / "s").values())


@pytest.mark.slow
def test_the_first_suggestion_follows_from_the_seed(search, tmp_path):
    first = []
    for seed in (3, 3, 4):
        search(SEARCH.format(settings=f"num_trials=1, seed={seed}"))
        first.append(told(tmp_path / "s").trials[0].params["rate"])
        (tmp_path / "s").rename(tmp_path / f"s{len(first)}")
    assert first[0] == first[1] != first[2]


GRID = """
import optuna
from recursia.sweep import Search
RATES = [0.1, 0.01, 1.0]
SAMPLER = lambda seed: optuna.samplers.GridSampler({"rate": RATES})  # in one order
SEARCH = Search(num_trials=3, sampler=SAMPLER)
def search(trial):
    return {"optimizer.learning_rate": trial.suggest_categorical("rate", RATES)}
"""


def test_a_trial_that_diverges_is_a_result_and_one_that_fails_is_none(search, tmp_path):
    said = search(GRID, "--jobs=1", code=1, **{"0_1": "diverge", "1_0": "no data"})
    assert "1 finished, 1 diverged, 1 failed" in said
    (pruned,) = of_state(tmp_path / "s", "PRUNED")
    assert pruned.params == {"rate": 0.1} and pruned.user_attrs["state"] == "diverged"
    assert [each.params["rate"] for each in of_state(tmp_path / "s", "FAIL")] == [1.0]
    search("", "--retry_failed")
    assert {each.params["rate"] for each in of_state(tmp_path / "s", "COMPLETE")} == {0.01, 1.0}
    counts = {name: len(each) for name, each in trials.starts(tmp_path / "s").items()}
    assert sorted(counts.values()) == [1, 1, 2]


def test_equal_suggestions_are_run_once_and_end_the_search(search, tmp_path, monkeypatch):
    monkeypatch.setattr(adaptive, "TWINS", 4)
    said = search(CHOICE.format(number=50, rates="[0.1, 0.01]"))
    assert "ending the search" in said
    assert [len(each) for each in trials.starts(tmp_path / "s").values()] == [1, 1]


PRUNING = "num_trials=2, pruner=__import__('optuna').pruners.ThresholdPruner(upper=1.5)"


def test_a_trial_that_the_pruner_gives_up_is_stopped_and_never_run_again(search, tmp_path):
    text = SEARCH.format(settings=PRUNING).replace("1e-3, 1, log=True", "0.5, 1, log=True")
    said = search(text, "--jobs=1", num_steps=500)
    assert "2 pruned" in said
    assert len(of_state(tmp_path / "s", "PRUNED")) == 2
    for path in (tmp_path / "s" / "trials").glob("*/metrics.jsonl"):
        assert path.read_text().count("\n") < 500
    search("")
    assert [len(each) for each in trials.starts(tmp_path / "s").values()] == [1, 1]


def running(place):
    """Waits until a trial has a row of metrics."""
    until = time.monotonic() + LIMIT_SECONDS
    while not list(place.glob("trials/*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.02)


def test_a_search_that_is_stopped_goes_on_with_the_same_trials(search, tmp_path):
    place = tmp_path / "s"

    def stop():
        running(place)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=stop)
    sender.start()
    search(SEARCH.format(settings="num_trials=2"), "--jobs=1", code=75, num_steps=30)
    sender.join()
    (stopped,) = directory.read(place).trials
    assert states.of(directory.read(place).folder(stopped))[0] == states.STOPPED
    assert "2 finished" in search("", num_steps=30)
    assert [len(each) for each in trials.starts(place).values()] == [2, 1]
    assert len(of_state(place, "COMPLETE")) == 2
    (again,) = [each for each in told(place).trials if "again" in each.user_attrs]
    assert again.user_attrs[study.NAME] == stopped


RUN = "import sys\nfrom recursia import cli\nfrom recursia.sweep import processes\n"
RUN += "processes.PROGRAM = (sys.executable, {!r})\nsys.exit(cli.main(sys.argv[1:]))"


@pytest.mark.slow
def test_workers_share_a_search_and_take_over_from_one_that_is_killed(search, tmp_path):
    place, text = tmp_path / "s", SEARCH.format(settings="num_trials=6")
    search(text, "--runner=print", num_steps=40)
    program = RUN.format(processes.PROGRAM[1])
    arguments = ["sweep", "resume", f"--workdir={place}", "--runner=local", "--jobs=1"]
    how = {"stderr": subprocess.DEVNULL}
    killed, other = (
        subprocess.Popen([sys.executable, "-c", program, *arguments], **how) for _ in range(2)
    )
    running(place)
    killed.send_signal(signal.SIGKILL)
    killed.wait(LIMIT_SECONDS)
    assert other.wait(2 * LIMIT_SECONDS) in (0, 75)
    search("", "--runner=local", num_steps=40)
    assert len(of_state(place, "COMPLETE")) == 6
    assert not of_state(place, "RUNNING") and len(directory.read(place).trials) == 6
    for path in (place / "trials").glob("*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == list(range(1, 41)), "each step once"


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("return 3", ["int", "overrides"]),
        ("1 / 0", ["ZeroDivisionError", "line"]),
        ("return {'optimizer.learning_rat': 1}", ["learning_rate"]),
    ],
)
def test_a_mistake_of_a_search_is_one_line_and_starts_nothing(body, parts, search, tmp_path):
    text = SEARCH.format(settings="num_trials=2").partition("def search")[0]
    said = search(f"{text}\ndef search(trial):\n    {body}\n", code=2)
    assert said.splitlines()[-1].startswith("recursia: --config=")
    assert all(part in said for part in parts)
    assert trials.starts(tmp_path / "s") == {}


def test_a_search_without_optuna_is_one_line(search, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "recursia[sweep]" in search(SEARCH.format(settings="num_trials=2"), code=2)


def test_a_damaged_study_is_one_line(search, tmp_path):
    search(SEARCH.format(settings="num_trials=1"))
    path = tmp_path / "s" / study.JOURNAL
    path.write_bytes(b'{"op_code"' + path.read_bytes()[5:])
    said = search("", code=2)
    assert said.count("\n") == 1 and f"{path}: cannot be read" in said


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ("num_trials=0", "num_trials: got 0"),
        ("num_trials='x'", "num_trials: got 'x'"),
        ("num_trials=2, seed=1.5", "seed: got 1.5"),
        ("num_trials=2, sampler=3", "sampler: got 3, takes what makes a sampler"),
        ("num_trials=2, pruner=type", "pruner: got <class 'type'>, takes a pruner"),
    ],
)
def test_settings_of_a_search_are_checked(settings, part, tmp_path, refused_command):
    config = trials.write(tmp_path, SEARCH.format(settings=settings))
    place = f"--workdir={tmp_path / 's'}"
    refused_command("sweep", f"--config={config}", place, parts=[part, "line"])
    assert not (tmp_path / "s").exists()


def test_a_sampler_that_cannot_be_made_is_one_line(search, tmp_path):
    said = search(SEARCH.format(settings="num_trials=2, sampler=lambda: 0"), code=2)
    assert said.splitlines()[-1].startswith("recursia: SEARCH.sampler: TypeError: ")
    assert trials.starts(tmp_path / "s") == {}


def test_a_sweep_does_not_become_a_search(search, tmp_path):
    place = tmp_path / "s"
    directory.write(
        place, declaration.read(trials.write(tmp_path, trials.RATES.format([1])), {}), {}
    )
    assert "another kind" in search(SEARCH.format(settings="num_trials=2"), code=2)
