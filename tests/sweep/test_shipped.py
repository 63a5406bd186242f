"""Every trial of every shipped sweep can be run, and costs what its sweep says."""

import functools
import json
import pathlib
import re

import pytest

import recursia.configs.sweeps
from recursia import accounting, budget, cli, config, presets
from recursia.errors import ConfigError
from recursia.sweep import declaration
from recursia.sweep import trial as trials
from recursia.sweep.spending import steps_for
from tests.helpers import exhaustive, slow
from tests.helpers.benchmarks import benchmark, page, result

FOLDER = pathlib.Path(recursia.configs.sweeps.__path__[0])
FILES = sorted({path.stem for path in FOLDER.glob("*.py")} - {"__init__", "axes"})
SWEEPS = [name for file in FILES for name in presets.presets(f"sweeps/{file}")]
QUICK = ["sweeps/sharing:tiny", "sweeps/capacity:tiny"]
# Large sizes are the same laws at other numbers.
EVERY = [
    name if name in QUICK else slow(name) if ":tiny" in name else exhaustive(name)
    for name in SWEEPS
]
UNEQUAL = ("_tokens", "iso_flop", "learning_rate")  # sweeps of several budgets
called = lambda each: each if isinstance(each, str) else each.values[0]
EQUAL = [each for each in EVERY if not any(part in called(each) for part in UNEQUAL)]
BUDGETS = [each for each in EVERY if "iso_flop" in called(each)]


@functools.cache
def declared(name):
    """Returns the trials, each of which has been checked as a configuration."""
    return declaration.read(name, {}).trials


def flops_and_step(trial):
    """Returns the training FLOPs of a trial, and of one of its steps."""
    run = trial.run()
    total = budget.training_flops(run)
    return total, total / run.train.num_steps


ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (\d+(?:, \d+)*) \|", re.MULTILINE)


@functools.cache
def told():
    """Returns how many trials the page says that a sweep has, by its name."""
    found = {}
    for file, sizes, counts in ROW.findall(page("sweeps")):
        each, numbers = re.findall(r"`(\w+)`", sizes), counts.split(", ")
        numbers = numbers * len(each) if len(numbers) == 1 else numbers
        found |= {f"sweeps/{file}:{p}": int(n) for p, n in zip(each, numbers, strict=False)}
    return found


def test_the_page_has_every_sweep():
    assert {name.partition(":")[0] for name in told()} == {f"sweeps/{file}" for file in FILES}
    assert told().keys() <= set(SWEEPS)


@pytest.mark.parametrize("name", EVERY)
def test_trials_are_configurations_and_differ_in_their_labels(name):
    trials = declared(name)
    labels = [tuple(sorted(trial.labels.items())) for trial in trials]
    assert len(set(labels)) == len(trials) > 1
    assert len(trials) == told().get(name, len(trials))


@pytest.mark.parametrize("name", EQUAL)
def test_trials_of_a_sweep_spend_equal_flops_within_half_a_step(name):
    costs = [flops_and_step(trial) for trial in declared(name)]
    middle = (max(total - step / 2 for total, step in costs), min(t + s / 2 for t, s in costs))
    assert middle[0] <= middle[1]


@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_is_spent_within_half_a_step(name):
    for trial in declared(name):
        total, step = flops_and_step(trial)
        assert abs(total - trial.labels["budget"]) <= step / 2


def test_steps_spend_a_budget_within_half_a_step():
    for flops in (1e10, 3.3e11):
        steps = steps_for(flops, "recursive:tiny", {"num_layers": 5, "train.batch_size": 2})
        run = config.load("recursive:tiny", {"num_layers": "5", "train.batch_size": "2"})
        step = budget.training_flops(run) / run.train.num_steps
        assert abs(steps * step - flops) <= step / 2


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "360m"])
def test_depth_is_compared_at_equal_parameters(size):
    by_flops = [each.run() for each in declared(f"sweeps/equal_parameters:{size}")]
    by_tokens = [each.run() for each in declared(f"sweeps/equal_parameters:{size}_tokens")]
    count = lambda run: accounting.unique_parameters(run.model.sized(budget.vocab_size(run)))
    assert len(set(map(count, [*by_flops, *by_tokens]))) == 1
    assert len({run.train.num_steps for run in by_tokens}) == 1
    assert len({run.train.num_steps for run in by_flops}) > 1


def test_a_budget_below_one_step_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"3\.32e\+09 training FLOPs.*budget of 1e\+06"):
        steps_for(1e6, "vanilla:tiny", {})


@pytest.mark.parametrize("file", FILES)
def test_a_file_opens_with_its_commands(file):
    text = (FOLDER / f"{file}.py").read_text().partition('"""')[2].partition('"""')[0]
    assert f"recursia sweep --config=sweeps/{file}:tiny --workdir=" in text
    assert "recursia sweep report --workdir=" in text


TRAINED = [slow(file) if file == "ties" else exhaustive(file) for file in FILES]  # it has phases


@pytest.mark.parametrize("file", TRAINED)
def test_a_tiny_trial_trains_to_a_validation_loss(file, tmp_path):
    """The last trial, shortened: all trials take minutes."""
    trial = declared(f"sweeps/{file}:tiny")[-1]
    short = {"train.num_steps": "2", "schedule.warmup_steps": "0", "eval.num_batches": "1"}
    short |= {"train.batch_size": "8"}  # of the devices of the tests
    resolved, _ = trials.resolve(trial.config, trial.overrides, short, trial.labels)
    assert cli.main(list(resolved.command(str(tmp_path)))) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 0 < rows[-1]["validation_loss"] < 10
    assert rows[-1]["step"] == 2


def test_the_table_of_the_page_is_its_result():
    found, shown = result("iso_flop"), page("sweeps")
    assert benchmark("iso_flop").table(found) in shown
    assert found["command"] in shown


@pytest.mark.slow
def test_the_result_is_of_the_trials_that_are_shipped():
    shipped = {trial.name: trial.labels for trial in declared("sweeps/iso_flop:tiny")}
    assert {row["name"]: row["labels"] for row in result("iso_flop")["trials"]} == shipped
