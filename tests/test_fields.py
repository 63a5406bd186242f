"""What there is to set: presets by name, fields with their meaning, and what a typo meant."""

import dataclasses
import json

import pytest

from recursia import config, kinds
from recursia.errors import ConfigError
from recursia.meanings import meanings
from tests.helpers.runs import values, write_config

KINDS = [(field, kind) for field in kinds.BASES for kind in kinds.names(field)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fields")
    return config.load(write_config(folder / "tiny.py", values(folder)), {})


def test_a_file_lists_its_presets_as_they_are_typed(tmp_path):
    assert "mor" in config.shipped() and "base" not in config.shipped()
    assert {"mor:tiny", "mor:360m_token"} <= set(config.presets("mor"))
    plain = write_config(tmp_path / "tiny.py", {})
    assert config.presets(plain) == (plain,)
    assert config.presets("mor:tiny") == config.presets("mor")


def test_every_field_has_a_meaning_a_type_and_its_value(run):
    found = config.fields(run)
    assert all(field.meaning and field.type for field in found)
    by_path = {field.path: field for field in found}
    assert len(by_path) == len(found)
    assert by_path["train.num_steps"].default == "required"
    assert by_path["train.num_steps"].value == run.train.num_steps
    assert by_path["model.depth.kind"].value == "expert_choice"
    assert "'fixed'" in by_path["model.depth.kind"].type
    assert by_path["model.weights.kind"].default == "tied"
    plain = config.to_dict(run)
    for field in found:
        value = plain
        for name in field.path.split("."):
            value = value[name]
        assert value == field.value
    json.dumps([dataclasses.asdict(field) for field in found])


@pytest.mark.parametrize(("field", "kind"), KINDS)
def test_every_field_of_every_kind_has_a_meaning(field, kind):
    cls = kinds.config_class(field, kind)
    assert {f.name for f in dataclasses.fields(cls)} <= meanings(cls).keys()


def test_a_prefix_takes_a_section_or_a_field_and_a_wrong_one_is_refused(run):
    paths = lambda prefix: [field.path for field in config.fields(run, prefix)]
    assert paths("log") == ["log.every_steps", "log.sinks"]
    assert paths("depth.capacity") == paths("model.depth.capacity") == ["model.depth.capacity"]
    with pytest.raises(ConfigError, match=r"optimiser: no such field; did you mean 'optimizer'"):
        paths("optimiser")


MEANT = {
    "optimizer.lr": "did you mean 'optimizer.learning_rate'?",
    "lr": "did you mean 'optimizer.learning_rate'?",
    "train.lr": "did you mean 'optimizer.learning_rate'?",
    "learning_rate": "did you mean 'optimizer.learning_rate'?",
    "model.width": "did you mean 'model.block.embed_dim'?",
    "model.embed_dim": "did you mean 'model.block.embed_dim'?",
    "block.width": "did you mean 'model.block.embed_dim'?",
    "model.layers": "did you mean 'model.num_layers'?",
    "capacity": "did you mean 'model.depth.capacity'?",
    "train.steps": "did you mean 'train.num_steps'?",
    "train.learningrate": "did you mean 'optimizer.learning_rate'?",
    "depth.num_recursion": "did you mean 'num_recursions'?",
    "temperature": "mean 'model.depth.temperature' or 'distill.temperature' or 'eval.temperature'?",
    "block.expert_dim": "Fields are embed_dim, mixer, feedforward, ",
}


@pytest.mark.parametrize(("typed", "said"), MEANT.items(), ids=MEANT)
def test_a_name_that_is_not_there_is_looked_for_in_the_whole_tree(tmp_path, typed, said):
    path = write_config(tmp_path / "tiny.py", values(tmp_path))
    with pytest.raises(ConfigError) as refusal:
        config.load(path, {typed: "1"})
    assert f"{typed.rpartition('.')[2]}: no such field" in str(refusal.value)
    assert said in str(refusal.value)
