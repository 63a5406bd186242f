"""What a configuration file declares, and the names that follow from it alone."""

import os
import pathlib
import subprocess
import sys

import pytest

from recursia import config, presets
from recursia.errors import ConfigError
from recursia.sweep import declaration, directory, trial
from tests.helpers import trials
from tests.helpers.refusals import refused


def declared(folder, body, typed=None, head="def sweep(add):"):
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    return declaration.read(trials.write(folder, f"\n{head}\n{lines}\n"), typed or {})


def names(folder, body, **how):
    return [each.name for each in declared(folder, body, **how).trials]


ONE = "add(**{'optimizer.learning_rate': 1e-3, 'model.depth.num_recursions': 1})"


@pytest.mark.parametrize(
    "other",
    [
        "add(**{'depth.num_recursions': 1, 'optimizer.learning_rate': 0.001})",
        "add(**{'optimizer.learning_rate': '1e-3', 'depth.num_recursions': '1'})",
        "add(labels={'system': 'a'}, **{'optimizer.learning_rate': 10**-3,"
        " 'depth.num_recursions': 1.0})",
        "add(**{'optimizer.learning_rate': 1e-3, 'depth.num_recursions': 1, 'log.sinks': ()})",
        "import numpy as np\nadd(**{'optimizer.learning_rate': np.float64(1e-3),"
        " 'depth.num_recursions': np.int32(1)})",
    ],
)
def test_a_name_does_not_depend_on_order_spelling_labels_or_logs(other, tmp_path):
    assert names(tmp_path, ONE) == names(tmp_path, other)


@pytest.mark.parametrize(
    "other",
    [
        "add(**{'optimizer.learning_rate': 2e-3, 'depth.num_recursions': 1})",
        "add(**{'optimizer.learning_rate': 1e-3})",
        "add(config='vanilla:tiny', **{'optimizer.learning_rate': 1e-3, "
        "'depth.num_recursions': 1})",
    ],
)
def test_another_value_field_or_base_has_another_name(other, tmp_path):
    assert names(tmp_path, ONE) != names(tmp_path, other)


def test_a_name_is_the_same_on_every_machine_and_in_every_process(tmp_path, monkeypatch):
    """Whatever the folders, the hash seed and the order of declaration."""
    body = "add(**{'data.text': ['train.txt'], 'train.num_steps': 2})\nadd(config='vanilla:tiny')"
    found = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        found.append(names(tmp_path / name, body))
    assert found[0] == found[1] == ["2054c3d21e30", "725060ea9bc3"]
    relative = [each.name for each in declaration.read("tiny.py", {}).trials]
    assert relative == found[0]
    assert declaration.read("tiny.py", {}).trials[0].config == str(tmp_path / "there" / "tiny.py")


def test_a_shipped_configuration_has_one_name_however_it_is_found():
    path = pathlib.Path(declaration.__file__).parents[2] / "configs" / "vanilla.py"
    by = [trial.resolve(base, {}, {}, {})[0].name for base in ("vanilla:tiny", f"{path}:tiny")]
    assert by[0] == by[1]


def test_a_command_trains_what_was_declared(tmp_path):
    """Values of every type go to the command line and back."""
    body = (
        "add(**{'eval.prompts': ('one, two', \"it's [3]\"), 'depth.kind': 'fixed',"
        " 'train.remat': 'block', 'log.sinks': (), 'data.weights': [1, 0.5],"
        " 'data.path': ['a', 'b c'], 'optimizer.learning_rate': 1e-3})"
    )
    (made,) = declared(tmp_path, body).trials
    verb, base, *changes, workdir = made.command("runs/x")
    assert (verb, base, workdir) == ("train", f"--config={made.config}", "--workdir=runs/x")
    typed = dict(each.removeprefix("--config.").split("=", 1) for each in changes)
    run = config.load(made.config, typed)
    assert run == made.run()
    assert run.eval.prompts == ("one, two", "it's [3]") and run.log.sinks == ()
    assert run.data.path == (os.path.abspath("a"), os.path.abspath("b c"))
    assert list(typed) == sorted(typed), "full names in order"
    assert made.overrides["model.depth.kind"] == "fixed"


def test_what_is_typed_applies_to_all_trials_and_replaces_what_they_declare(tmp_path):
    body = "for rate in (1, 2):\n    add(**{'optimizer.learning_rate': rate, 'train.num_steps': 9,"
    body += " 'model.depth.num_recursions': 2})"
    typed = {"train.num_steps": "4", "depth.num_recursions": "1"}
    for each in declared(tmp_path, body, typed=typed).trials:
        assert each.run().train.num_steps == 4 and each.run().model.depth.num_recursions == 1
    assert names(tmp_path, body) != names(tmp_path, body, typed=typed)


def test_a_sweep_may_ask_for_the_preset(tmp_path):
    body = "add(labels={'of': preset})"
    (made,) = declared(tmp_path, body, head="def sweep(add, preset):").trials
    assert made.labels == {"of": ""}
    (made,) = declaration.read(f"{tmp_path}/tiny.py:small", {}).trials
    assert made.labels == {"of": "small"}


REFUSED = {
    "no trial": ("pass", ["adds no trial"]),
    "no such field": ("add(**{'optimizer.learning_rat': 1})", ["trial 1", "learning_rate"]),
    "a bad value": ("add()\nadd(**{'train.num_steps': 'ten'})", ["trial 2", "'ten'"]),
    "no value": ("add(**{'train.num_steps': object})", ["trial 1", "object"]),
    "an error": ("1 / 0", ["ZeroDivisionError", "line"]),
    "no name": ("add({'train.num_steps': 3})", ["add() takes 0 positional arguments"]),
    "an exit": ("raise SystemExit('no')", ["SystemExit"]),
    "equal trials": (
        "add(**{'optimizer.learning_rate': 1e-3})\nadd(**{'optimizer.learning_rate': '0.001'})",
        ["trials 1 and 2 are equal", "optimizer.learning_rate=0.001"],
    ),
    "trials of the same run": ("add()\nadd(**{'train.seed': 0})", ["trials 1 and 2 are equal"]),
    "a base that is none": ("add(config='vanila:tiny')", ["trial 1", "vanilla"]),
    "a base that is no name": ("add(config=3)", ["trial 1", "config=3"]),
    "labels that are none": ("add(labels=3)", ["trial 1", "labels=3"]),
    "labels that JSON lacks": ("add(labels={'a': object()})", ["trial 1", "labels"]),
    "a field twice": (
        "add(**{'depth.num_recursions': 1, 'model.depth.num_recursions': 2})",
        ["trial 1", "give one of the two"],
    ),
}


@pytest.mark.parametrize("body", REFUSED)
def test_a_mistake_is_one_line_and_nothing_is_written(body, tmp_path, refused_command):
    text, parts = REFUSED[body]
    with refused(ConfigError, *parts):
        declared(tmp_path, text)
    place = tmp_path / "sweep"
    for runner in ("local", "print"):
        refused_command(
            *("sweep", f"--config={tmp_path / 'tiny.py'}", f"--workdir={place}"),
            f"--runner={runner}",
            parts=parts,
        )
    assert not place.exists()


def test_a_file_declares_a_sweep_or_a_search(tmp_path):
    with refused(ConfigError, "neither"):
        declaration.read(trials.write(tmp_path, ""), {})
    both = "\ndef sweep(add): add()\ndef search(trial): return {}\n"
    with refused(ConfigError, "both"):
        declaration.read(trials.write(tmp_path, both), {})
    with refused(ConfigError, "SEARCH", "Search"):
        declaration.read(trials.write(tmp_path, "\ndef search(trial): return {}\n"), {})
    with refused(ConfigError, "no file"):
        declaration.read(str(tmp_path / "none.py"), {})
    with refused(ConfigError, "neither", "sweeps/iso_flop"):
        declaration.read("mor:tiny", {})
    (tmp_path / "sweep.json").touch()
    with refused(ConfigError, "is a sweep", f"resume --workdir={tmp_path}"):
        declaration.read(str(tmp_path), {})
    (tmp_path / "sweep.json").unlink()
    (tmp_path / "config.json").touch()
    for run in (str(tmp_path), "gs://bucket/run"):
        with refused(ConfigError, f"--config={run}: is a run"):
            declaration.read(run, {})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sweeps/iso_flp:tiny", "sweeps/iso_flop"),
        ("sweep/capacity", "sweeps/capacity"),
        ("learning_rate:tiny", "sweeps/learning_rate"),
        ("sweeps/mor:tiny", ""),
        ("sweeps/nothing_like_it", ""),
        ("sweeps/axes:tiny", ""),
        ("sweeps", ""),
        ("sweeps/", ""),
        ("sweeps/iso_flp.py", "sweeps/iso_flop"),
    ],
)
def test_a_misspelled_sweep_is_refused_with_the_sweeps(name, nearest, tmp_path, refused_command):
    for verb in (("sweep", f"--workdir={tmp_path}"), ("train", f"--workdir={tmp_path / 'run'}")):
        said = refused_command(*verb, f"--config={name}", parts=["sweeps/sharing"])
        assert said.endswith(f"hoices are {', '.join(presets.shipped('sweeps'))}\n")
        assert not nearest or f"did you mean {nearest!r}?" in said


def test_a_misspelled_system_is_refused_with_the_systems(refused_command):
    for name in ("mr:tiny", "nothing_like_it", "no_folder/nothing_like_it"):
        said = refused_command("fields", name, parts=["albert, ", "yoco"])
        assert ("did you mean 'mor'?" in said) == (name == "mr:tiny")
        assert ("sweeps/iso_flop" in said) == (name.startswith("no_folder"))


def test_trials_that_are_still_declared_are_kept_and_others_are_named(tmp_path):
    place, none = tmp_path / "sweep", {}
    body = "for rate in {}:\n    add(**{{'optimizer.learning_rate': rate}})"
    first = declared(tmp_path, body.format("(1, 2)"))
    assert directory.write(place, first, none) == []
    (place / "trials" / first.trials[0].name / "kept").touch()
    (place / "trials" / first.trials[1].name / "kept").touch()
    second = declared(tmp_path, body.format("(3, 2)"))
    assert directory.write(place, second, none) == [first.trials[0].name]
    assert directory.read(place).trials == tuple(each.name for each in second.trials)
    assert second.trials[1] == first.trials[1] == directory.read(place).trial(first.trials[1].name)
    assert all((place / "trials" / each.name / "kept").exists() for each in first.trials)
    assert second.digest != first.digest == declared(tmp_path, body.format("(1, 2)")).digest


@pytest.mark.parametrize("text", ["{", "[]", "{}", ""])
@pytest.mark.parametrize("name", ["sweep.json", "trial.json"])
def test_a_damaged_declaration_is_one_line(name, text, tmp_path, refused_command):
    made = declared(tmp_path, "add()")
    directory.write(tmp_path / "s", made, {})
    (path,) = (tmp_path / "s").rglob(name)
    path.write_text(text) if text else path.unlink()
    for verb in ("status", "resume", "results"):
        refused_command("sweep", verb, f"--workdir={tmp_path / 's'}", parts=[name])
    if name == "trial.json":
        directory.write(tmp_path / "s", made, {})
        assert directory.read(tmp_path / "s").all() == list(made.trials)


def test_no_sweep_is_one_line(tmp_path, refused_command):
    for verb in ("status", "resume", "results"):
        refused_command("sweep", verb, f"--workdir={tmp_path}", parts=["sweep.json"])
    refused_command("sweep", f"--workdir={tmp_path}", parts=["--config"])
    refused_command("sweep", "--config=vanilla:tiny", parts=["--workdir"])


def test_what_declares_imports_no_jax():
    """A file that declares a sweep is read by `--help` and completion too."""
    code = "import sys; from recursia.sweep import product; assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_with_the_name_of_a_shipped_file_is_a_configuration_if_it_is_a_run(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vanilla").mkdir()
    assert trial.placed("vanilla:tiny") == "vanilla:tiny"
    (tmp_path / "vanilla" / "config.json").touch()
    assert trial.placed("vanilla") == str(tmp_path / "vanilla")
    assert trial.placed("vanilla:tiny") == "vanilla:tiny"
