"""Every shipped preset is a model, and every `tiny` goes through all commands."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import pytest

import recursia.configs
from recursia import accounting, config, model, params, presets
from tests.helpers import cluster
from tests.helpers.presets import COSTED, FILES, PRESETS, SYSTEMS

FOLDER = pathlib.Path(recursia.configs.__path__[0])


def test_every_file_has_a_tiny_preset():
    assert {name.partition(":")[0] for name in PRESETS if name.endswith(":tiny")} == set(FILES)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_model_with_a_cost(name):
    assert presets.read(name).is_locked
    run = config.load(name, {})
    made = run.model.sized(run.model.vocab_size or 257)
    shapes = params.abstract(model.specs(made))
    count = accounting.unique_parameters(made)
    assert count == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    forward = accounting.forward_flops(made, run.train.seq_len)
    assert forward > 0
    if name in COSTED:  # what training costs is traced, alike for all sizes of a system
        cost = accounting.budget(made, run.train.seq_len, run.train.rematerialisation)
        assert cost.unique_parameters == count
        assert 0 < cost.forward_flops_per_token < cost.training_flops_per_token
    assert made.schedule.num_steps + sum(made.ends.values()) == run.model.num_layers
    saved = json.loads(json.dumps(config.to_dict(run)))
    assert config.build(type(run), saved, "config") == run


@pytest.mark.parametrize("name", FILES)
def test_a_file_opens_with_its_command_its_paper_its_machines_and_a_result(name):
    text = (FOLDER / f"{name}.py").read_text()
    about = text.partition('"""')[2].partition('"""')[0]
    assert f"recursia train --config={name}:tiny" in about
    assert re.search(r"arXiv \d{4}\.\d{5}", about)
    machines = {config.load(preset, {}).topology for preset in config.presets(name)}
    assert all(machine in about for machine in machines - {config.load("mor:tiny", {}).topology})
    assert re.search(r"nats|bits per byte", about) and re.search(r"\s\d\.\d\d", about)


COMMANDS = """
import contextlib, io, json, sys
from recursia import cli

said = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = cli.main(command)
    said.append(out.getvalue())
    if code:
        sys.exit(code)
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_tiny_preset_trains_resumes_evaluates_and_samples(name, tmp_path):
    """On one device, in one process for all commands: starting one takes longer than they do."""
    workdir = f"--workdir={tmp_path}"
    short = ["--config.eval.num_batches=1", "--config.eval.sample_tokens=4"]
    short += ["--config.checkpoint.every_steps=2", "--config.log.every_steps=1"]
    train = ["train", f"--config={name}", workdir, *short]
    commands = [
        [*train, "--config.train.num_steps=3"],
        [*train, "--config.train.num_steps=5"],
        ["eval", workdir, "--num_batches=1", "--json"],
        ["generate", workdir, "--prompt=The ", "--num_tokens=3"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env=cluster.environment(1),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert sorted(losses) == [1, 2, 3, 4, 5]
    assert losses[5] < losses[1]
    *_, scores, sample = json.loads(done.stdout.splitlines()[-1])
    assert 0 < json.loads(scores.splitlines()[-1])["bits_per_byte"] < 9
    assert sample.startswith("The ")
