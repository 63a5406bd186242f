"""Tasks scored by several processes are scored as by one."""

import json
import pathlib

import jax
import numpy as np
import pytest

from recursia import cli
from recursia.data.vocabulary import ByteTokenizer
from recursia.evaluate import tasks
from recursia.generate import decode
from recursia.generate.sampling import Sampling
from recursia.workdir import trained as runs
from tests.helpers import cluster
from tests.helpers.runs import tiny_run
from tests.helpers.tiny import draw

pytest.importorskip("lm_eval")

DATA = pathlib.Path(__file__).parents[1] / "evaluate" / "data_sets"


def write_continuing(folder, params, config, tokenizer):
    """Writes a task of prompts whose answers are what each of them alone is continued by."""
    lines, window = [], 64
    for index, query in enumerate(("red", "blue", "one", "ten ten", "two")):
        ids, key = tokenizer.encode(query), jax.random.fold_in(jax.random.key(0), index)
        how = {"sampling": Sampling(1.0), "end_of_text": tokenizer.end_of_text, "key": key}
        drawn = decode.generate(params, config, ids, num_tokens=4, window=window, **how)
        lines.append({"query": query, "target": tokenizer.continuation(ids, drawn)})
    (folder / "continuing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "task": "continuing",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "continuing.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "query",
        "doc_to_target": "target",
        "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["nowhere"], "max_gen_toks": 4, "temperature": 1.0},
    }
    (folder / "continuing.yaml").write_text(json.dumps(settings))


@pytest.mark.slow
def test_tasks_by_two_processes_equal_those_by_one(tmp_path, capfd):
    run = tiny_run(tmp_path, "expert_choice", train={"batch_size": 8, "seq_len": 64})
    tokenizer, workdir = ByteTokenizer(), tmp_path / "run"
    config = run.model.sized(tokenizer.vocab_size)
    params = draw(config)
    runs.save(run, tokenizer.vocab_size, params, tokenizer, workdir)
    tasks.make(DATA, tmp_path / "tasks")
    write_continuing(tmp_path / "tasks", params, config, tokenizer)
    named = "--tasks=piqa,lambada_openai,blimp,continuing"
    command = ["eval", f"--workdir={workdir}", named, "--json"]
    command.append(f"--task_files={tmp_path / 'tasks'}")
    first, second = cluster.run(tmp_path / "output", command, count=2)
    capfd.readouterr()
    assert cli.main(command) == 0
    theirs = json.loads(capfd.readouterr().out)["tasks"]
    (found,) = [line for line in first.said if line.startswith("{")]
    assert not any(line.startswith("{") for line in second.said)
    for mine, other in zip(json.loads(found)["tasks"], theirs, strict=True):
        assert mine.keys() == other.keys() and mine["task"] == other["task"]
        if mine["task"] == "continuing":
            assert mine["metrics"]["exact_match"] == other["metrics"]["exact_match"] == 1
            continue
        assert mine["metrics"]["acc"] == other["metrics"]["acc"]
        np.testing.assert_allclose(mine["mean_depth"], other["mean_depth"], rtol=1e-5)
