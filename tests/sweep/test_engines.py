"""What SLURM and Kubernetes are sent, and that it is sent once wherever a submission is stopped."""

import json
import os
import pathlib
import re
import subprocess

import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from recursia.sweep import directory, engines
from recursia.workdir import ending
from tests.helpers import trials

GOLDEN = pathlib.Path(__file__).parent / "golden"
TWO = """
def sweep(add):
    for seed in (0, 1):
        add(config="vanilla:tiny", **{"train.seed": seed, "eval.prompts": ["it's $(odd)"]})
"""
SHARED = ("--shared=/shared", "--workdir=/shared/sweeps/lr")
CASES = {
    "slurm": ("--runner=slurm", "--topology=cpu:1", "--hours=2", "--target.cpus=4", *SHARED),
    "gke": (
        *("--runner=gke", "--topology=v5e:1x1", "--image=image:1", "--env=XLA_FLAGS=--a=1"),
        *("--target.queue=tpus", "--target.volume=claim", *SHARED),
    ),
}
SEARCH = """
from recursia.sweep import Search
SEARCH = Search(num_trials=4)
def search(trial):
    return {"optimizer.learning_rate": trial.suggest_float("rate", 1e-3, 1e-1, log=True)}
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Adds a program that appends its arguments and input to `sent`, and answers `answer`."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def add(name, answer="", code=0):
        path = tmp_path / "bin" / name
        reads = "cat" if name == "sbatch" else 'case "$1" in apply) cat ;; esac'
        path.write_text(
            f'#!/bin/sh\n( echo "{name} $*"; {reads} ) >>{tmp_path}/sent\n'
            f"printf '%b' '{answer}'\nexit {code}\n"
        )
        path.chmod(0o755)

    return add


@pytest.fixture
def sent(tmp_path):
    """Returns the commands of engines so far, without their input."""
    path = tmp_path / "sent"
    lines = lambda: path.read_text().splitlines() if path.exists() else []
    return lambda: [line for line in lines() if re.match(r"(sbatch|squeue|kubectl)\b", line)]


@pytest.fixture
def slurm(tmp_path, command):
    """Runs a verb of a sweep of three trials on SLURM."""
    config = trials.write(tmp_path, trials.RATES.format("(0.1, 0.01, 1)"))
    options = ("--runner=slurm", "--topology=cpu:1", f"--shared={tmp_path}")

    def run(*verb, code=0):
        given = verb or (f"--config={config}", *options)
        return command("sweep", *given, f"--workdir={tmp_path / 's'}", code=code)

    return run


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_prints_the_golden_script(name, tmp_path, command):
    """After a change that is meant: RECURSIA_GOLDEN=write pytest tests/sweep/test_engines.py."""
    config = trials.write(tmp_path, TWO)
    shown, _ = command("sweep", f"--config={config}", *CASES[name], "--dry_run")
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("RECURSIA_GOLDEN") == "write":
        path.write_text(shown)
    assert shown == path.read_text()
    assert subprocess.run(["bash", "-n"], input=shown, text=True).returncode == 0
    for manifest in re.findall(r"<<'END'\n(apiVersion.*?)^END$", shown, re.MULTILINE | re.DOTALL):
        read = yaml.safe_load(manifest)
        assert JobsetV1alpha2JobSet.from_dict(read).to_dict() == read


def test_the_array_is_noted_by_trial(slurm, engine, sent, tmp_path):
    engine("sbatch", "Submitted batch job 71 on cluster two\\n")
    slurm()
    assert len(sent()) == 1
    rows = json.loads(slurm("status", "--json")[0])["trials"]
    assert [row["job"] for row in rows] == ["71_0", "71_1", "71_2"]
    script = (tmp_path / "sent").read_text()
    assert "#SBATCH --array=0-2" in script and f"--output={tmp_path}/s/logs/" in script


def test_what_is_queued_is_not_sent_again(slurm, engine, sent, tmp_path):
    """Neither what runs nor what has a result; a trial that was lost in the queue is sent alone."""
    engine("sbatch", "Submitted batch job 71\\n")
    slurm()
    (first,) = engines.sent(tmp_path / "s")
    engine("squeue", f"{first.name} 0\\n{first.name} 1\\n{first.name} 2\\n")
    _, said = slurm("resume")
    assert "3 of 3 are queued or running" in said and "nothing to send" in said
    ending.write(directory.read(tmp_path / "s").folder(first.tasks[0]), 0, "")
    engine("squeue", f"{first.name} 1\\n")
    slurm("resume")
    assert [line.split()[0] for line in sent()] == ["sbatch", "squeue", "squeue", "sbatch"]
    assert engines.sent(tmp_path / "s")[1].tasks == first.tasks[2:]
    assert "#SBATCH --array" not in (tmp_path / "sent").read_text().rpartition("sbatch ")[2]
    second = engines.sent(tmp_path / "s")[1]
    engine("squeue", f"{first.name} 1\\n{second.name} N/A\\n")
    assert "nothing to send" in slurm("resume")[1]


def test_a_submission_that_was_stopped_is_not_sent_twice(slurm, engine, sent, tmp_path):
    """As if this process had been killed after sbatch took the job, or before."""
    engine("sbatch", "Submitted batch job 71\\n", code=1)
    assert "--runner=slurm: sbatch ended with 1" in slurm(code=1)[1]
    (first,) = engines.sent(tmp_path / "s")
    assert first.job == ""
    rows = "\\n".join(f"{first.name} {i}" for i in range(3))
    engine("squeue", rows)
    engine("sbatch", "Submitted batch job 72\\n")
    assert "nothing to send" in slurm("resume")[1]
    engine("squeue", "")
    slurm("resume")
    assert [each.job for each in engines.sent(tmp_path / "s")] == ["", "72"]


def test_nothing_is_sent_if_the_queue_is_not_known(slurm, engine, sent, tmp_path):
    engine("sbatch", "Submitted batch job 71\\n")
    slurm()
    engine("squeue", code=1)
    _, said = slurm("resume", code=2)
    assert said.count("\n") == 1 and "squeue" in said
    assert [line.split()[0] for line in sent()] == ["sbatch", "squeue"]


def test_a_set_that_has_ended_makes_room_for_its_trial(tmp_path, engine, sent, command):
    config = trials.write(tmp_path, TWO)
    options = [option for option in CASES["gke"] if not option.startswith(SHARED)]
    options += [f"--shared={tmp_path}", f"--workdir={tmp_path / 's'}"]
    engine("kubectl")
    command("sweep", f"--config={config}", *options)
    first, second = engines.sent(tmp_path / "s")
    assert [line.split()[1] for line in sent()] == ["apply", "apply"]
    engine("kubectl", f"{first.name} \\n{second.name} Failed\\nothers \\n")
    command("sweep", "resume", f"--workdir={tmp_path / 's'}")
    verbs = [line.split()[1:4] for line in sent()[2:]]
    assert [each[0] for each in verbs] == ["get", "delete", "apply"]
    assert verbs[1] == ["delete", "jobset", second.name]
    assert [each.tasks for each in engines.sent(tmp_path / "s")] == [
        *(first.tasks, second.tasks, second.tasks)
    ]


def test_workers_of_a_search_are_commands_that_resume_it(tmp_path, command):
    config = trials.write(tmp_path, SEARCH)
    given = (f"--config={config}", f"--workdir={tmp_path / 's'}", "--jobs=2")
    line = f"recursia sweep resume --workdir={tmp_path}/s --runner=local --jobs=1\n"
    assert command("sweep", *given, "--runner=print")[0] == 2 * line
    slurm = ("--runner=slurm", "--topology=cpu:1", f"--shared={tmp_path}", "--dry_run")
    script, _ = command("sweep", *given, *slurm)
    assert "#SBATCH --array=0-1" in script and script.count(" sweep resume ") == 2


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--runner=slurm",), ["v5e:1x1", "slurm"]),
        (("--runner=slurm", "--topology=cpu:1"), ["--shared"]),
        (("--runner=gke", "--topology=v5e:1x1"), ["--runner=gke: needs --target.queue"]),
        (("--runner=slurm", "--topology=cpu:1", "--target.queue=x"), ["--target.queue=x"]),
        (("--runner=slurm", "--topology=cpu:1", "--shared=/", "--env=3"), ["--env=3"]),
        (("--runner=slurm", "--topology=cpu:1", "--shared=/", "--target.logs=a\nb"), ["one line"]),
    ],
)
def test_what_an_engine_refuses_is_one_line_and_writes_nothing(
    options, parts, tmp_path, refused_command
):
    config = trials.write(tmp_path, TWO)
    place = f"--workdir={tmp_path / 's'}"
    refused_command("sweep", f"--config={config}", place, *options, parts=parts)
    assert not (tmp_path / "s").exists()
