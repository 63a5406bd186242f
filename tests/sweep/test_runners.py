"""What is printed, and what is refused, before any trial runs."""

import json
import pathlib

import pytest

from recursia.sweep import directory
from recursia.workdir import ending


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
    lines = "--config.train.init_from=a\nb"
    place = f"--workdir={tmp_path / 'lines'}"
    refused_command("sweep", config, lines, "--runner=print", place, parts=["one line"])
    assert not (tmp_path / "lines").exists()
    (tmp_path / "config.json").touch()
    place = f"--workdir={tmp_path}"
    refused_command("sweep", config, "--runner=print", place, parts=["holds a run"])


def test_a_dry_run_writes_nothing(sweep, tmp_path):
    shown, _ = sweep("--dry_run")
    assert shown.count("\n") == 3 and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ({"runner": "k8s"}, "--runner: invalid choice: 'k8s'"),
        ({"threads": "x"}, "--threads: got 'x', takes a number"),
        ({"runner": "slurm", "topology": 3}, "--topology=3: takes"),
    ],
)
def test_what_is_recorded_of_a_runner_is_read_as_it_is_typed(how, part, sweep, tmp_path):
    sweep("--runner=print", "--threads=2", "--shared=/a,/b", "--env=A=1", "--env=B=x,y")
    path = tmp_path / "s" / "sweep.json"
    values = json.loads(path.read_text())
    sweep("resume")
    assert json.loads(path.read_text())["how"] == values["how"]
    path.write_text(json.dumps({**values, "how": how}))
    _, said = sweep("resume", "--dry_run", code=2)
    assert said.count("\n") == 1 and part in said
