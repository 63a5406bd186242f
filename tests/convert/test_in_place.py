"""Verbs that load a run take a checkpoint from elsewhere as it lies: nothing is written."""

import json

import pytest

from recursia.errors import ConfigError
from recursia.workdir import trained
from tests.helpers.checkpoints import LLAMA, OURO, write
from tests.helpers.refusals import refused
from tests.helpers.runs import hashes, is_equal, state_of
from tests.helpers.tiny import is_equal as are_equal

SHORT = ("--config.train.seq_len=16", "--config.train.batch_size=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with checkpoints of two families and a text."""
    folder = tmp_path_factory.mktemp("in_place")
    write(folder / "llama", LLAMA)
    write(folder / "ouro", OURO)
    (folder / "text.txt").write_text("the cat sat on the mat and the dog ran " * 4)
    return folder


@pytest.mark.slow
def test_a_folder_is_evaluated_as_the_run_that_is_made_of_it(folder, tmp_path, command):
    before, text = hashes(folder), f"--text={folder / 'text.txt'}"
    for name in ("llama", "ouro"):
        place, run = folder / name, tmp_path / name
        command("convert", "huggingface", f"--input={place}", f"--output={run}", "--seq_len=16")
        here, there = (
            json.loads(command("eval", f"--workdir={workdir}", text, "--json", *more)[0])
            for workdir, more in ((place, SHORT), (run, ()))
        )
        assert here["table"] == there["table"] and here["step"] == there["step"] == 0
        say = ("generate", "--prompt=the", "--num_tokens=4", "--temperature=0")
        assert command(*say, f"--workdir={place}")[0] == command(*say, f"--workdir={run}")[0]
    out = tmp_path / "out"
    command("convert", "export", f"--workdir={folder / 'llama'}", f"--output={out}")
    command("convert", "huggingface", f"--input={out}", f"--output={tmp_path / 'again'}")
    assert is_equal(state_of(tmp_path / "again", 0), state_of(tmp_path / "llama", 0))
    assert hashes(folder) == before


def test_what_a_checkpoint_from_elsewhere_has_not_is_refused(folder, refused_command):
    place = f"--workdir={folder / 'llama'}"
    text = f"--text={folder / 'text.txt'}"
    refused_command("eval", place, parts=("no validation split", "--text=FILE"), code=3)
    refused_command("eval", place, text, "--step=3", parts=("--step=3", "leave it out"))
    refused_command("eval", place, text, "--baselines", parts=("--baselines", "training split"))
    wrong = ("config.block.mlp_dim", "config.train.seq_len")
    refused_command("eval", place, text, "--config.block.mlp_dim=3", parts=wrong)


def test_depths_and_settings_of_scoring_may_change(folder):
    loaded = trained.load(
        folder / "ouro", None, {"depth.exit_threshold": "0.5", "dtype": "bfloat16"}
    )
    assert loaded.model.depth.exit_threshold == 0.5 and loaded.model.dtype == "bfloat16"
    assert loaded.run.train.seq_len == OURO["max_position_embeddings"]
    plain = trained.load(folder / "ouro")
    assert are_equal(loaded.params, plain.params)
    with refused(ConfigError, "num_recursions"):
        trained.load(folder / "ouro", None, {"depth.num_recursions": "3"})
