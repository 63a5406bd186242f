"""Every shipped preset is a model, and every `tiny` goes through all commands."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

import recursia.configs
from recursia import accounting, config, model, params

FOLDER = pathlib.Path(recursia.configs.__path__[0])
FILES = config.shipped()
PRESETS = [preset for name in FILES for preset in config.presets(name)]
TINY = [name for name in PRESETS if name.partition(":")[2].startswith("tiny")]


def test_every_file_has_a_tiny_preset():
    assert {name.partition(":")[0] for name in PRESETS if name.endswith(":tiny")} == set(FILES)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_model_with_a_cost(name):
    run = config.load(name, {})
    made = run.model.build(run.model.vocab_size or 257)
    shapes = params.abstract(model.specs(made))
    cost = accounting.budget(made, run.train.seq_len)
    assert cost.unique_parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 0 < cost.forward_flops_per_token < cost.training_flops_per_token
    assert config.build(type(run), config.to_dict(run), "config") == run


@pytest.mark.parametrize("name", FILES)
def test_a_file_opens_with_its_command_its_paper_its_machines_and_a_result(name):
    text = (FOLDER / f"{name}.py").read_text()
    about = text.partition('"""')[2].partition('"""')[0]
    assert f"recursia train --config={name}:tiny" in about
    assert re.search(r"arXiv \d{4}\.\d{5}", about)
    machines = {config.load(preset, {}).topology for preset in config.presets(name)}
    assert all(machine in about for machine in machines - {config.load("mor:tiny", {}).topology})
    assert re.search(r"nats|bits per byte", about) and re.search(r"\s\d\.\d\d", about)


def recursia(*arguments):
    """Runs a command as a user does, on one device; returns what it prints."""
    command = [sys.executable, "-m", "recursia", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_preset_trains_resumes_evaluates_and_samples(name, tmp_path):
    workdir = f"--workdir={tmp_path}"
    short = ["--config.eval.num_batches=1", "--config.eval.sample_tokens=4"]
    short += ["--config.checkpoint.every_steps=2", "--config.log.every_steps=1"]
    train = ["train", f"--config={name}", workdir, *short]
    recursia(*train, "--config.train.num_steps=3")
    recursia(*train, "--config.train.num_steps=5")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert sorted(losses) == [1, 2, 3, 4, 5]
    assert losses[5] < losses[1]
    found = json.loads(recursia("eval", workdir, "--num_batches=1", "--json").splitlines()[-1])
    assert 0 < found["bits_per_byte"] < 9
    assert recursia("generate", workdir, "--prompt=The ", "--num_tokens=3").startswith("The ")
