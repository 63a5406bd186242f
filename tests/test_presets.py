"""Every shipped preset is a model."""

import json
import pathlib
import re

import jax
import pytest

import recursia.configs
from recursia import accounting, config, model, params, presets
from tests.helpers.presets import COSTED, FILES, PRESETS

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
