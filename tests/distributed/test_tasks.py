"""Tasks scored by several processes are scored as by one."""

import json
import pathlib

import numpy as np
import pytest

from recursia import cli
from recursia.data.vocabulary import ByteTokenizer
from recursia.evaluate import tasks
from recursia.workdir import trained as runs
from tests.helpers import cluster
from tests.helpers.runs import tiny_run
from tests.helpers.tiny import draw

pytest.importorskip("lm_eval")

DATA = pathlib.Path(__file__).parents[1] / "evaluate" / "data_sets"


@pytest.mark.slow
def test_tasks_by_two_processes_equal_those_by_one(tmp_path, capfd):
    run = tiny_run(tmp_path, "expert_choice", train={"batch_size": 8, "seq_len": 64})
    tokenizer, workdir = ByteTokenizer(), tmp_path / "run"
    config = run.model.sized(tokenizer.vocab_size)
    runs.save(run, tokenizer.vocab_size, draw(config), tokenizer, workdir)
    tasks.make(DATA, tmp_path / "tasks")
    command = ["eval", f"--workdir={workdir}", "--tasks=piqa,lambada_openai,blimp", "--json"]
    command.append(f"--task_files={tmp_path / 'tasks'}")
    first, second = cluster.run(tmp_path / "output", command, count=2)
    capfd.readouterr()
    assert cli.main(command) == 0
    theirs = json.loads(capfd.readouterr().out)["tasks"]
    (found,) = [line for line in first.said if line.startswith("{")]
    assert not any(line.startswith("{") for line in second.said)
    for mine, other in zip(json.loads(found)["tasks"], theirs, strict=True):
        assert mine.keys() == other.keys() and mine["task"] == other["task"]
        assert mine["metrics"]["acc"] == other["metrics"]["acc"]
        np.testing.assert_allclose(mine["mean_depth"], other["mean_depth"], rtol=1e-5)
