"""`recursia convert recursive`: from a run to a run that starts where it ended."""

import json

import pytest

from recursia import cli
from tests.helpers.refusals import assert_one_line
from tests.helpers.runs import values, write_config, write_text

DENSE = {"num_layers": 4, "sharing": "none", "depth": {"kind": "fixed", "num_recursions": 1}}
RELAXED = {
    "num_layers": 4,
    "sharing": "cycle",
    "depth": {"kind": "fixed", "num_recursions": 2},
    "weights": {"kind": "lora", "rank": 99},
    "varies": {"norms": "recursion+block"},
}


def written(folder, name, model):
    found = values(folder, train={"num_steps": 2, "batch_size": 8, "seq_len": 16})
    found["model"] = {**found["model"], **model}
    found["model"].pop("kv", None)
    return write_config(folder / f"{name}.py", found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    write_text(folder)
    dense = written(folder, "dense", DENSE)
    assert cli.main(["train", f"--config={dense}", f"--workdir={folder / 'dense'}"]) == 0
    return folder


def nats(command, workdir):
    scored = command("eval", f"--workdir={workdir}", "--json", "--num_batches=1")
    return json.loads(scored[0])["nats_per_token"]


@pytest.mark.exhaustive  # tests/test_convert_recursive.py holds it without the command line
def test_full_rank_adapters_give_back_the_dense_run(folder, command):
    target, made = written(folder, "relaxed", RELAXED), folder / "made"
    convert = ["convert", "recursive", f"--workdir={folder / 'dense'}", f"--config={target}"]
    command(*convert, "--init=average", f"--output={made}")
    assert abs(nats(command, made) - nats(command, folder / "dense")) < 1e-4
    again, short = folder / "again_made", ("--config.sharing=cycle", "--lora_rank=99")
    short += ("--config.depth.num_recursions=2", "--config.varies.norms=recursion+block")
    command(*convert[:3], *short, "--init=average", f"--output={again}")
    assert nats(command, again) == nats(command, made)
    _, err = command(*convert, f"--output={made}", code=2)
    assert_one_line(err, "is not empty")
    for wrong, why in {"--start=lower": "--init", "--config.weights.rank=3": "give one"}.items():
        _, err = command(*convert, wrong, "--lora_rank=2", f"--output={folder / 'no'}", code=2)
        assert_one_line(err, why)
    for config in (target, made):  # a run's directory is a configuration too
        start = f"--config={config}", f"--config.train.init_from={made}"
        command("train", *start, f"--workdir={folder / 'again'}")


@pytest.mark.slow
def test_a_model_of_other_widths_is_refused_in_one_line(folder, command):
    target = written(folder, "deeper", {**RELAXED, "num_layers": 6})
    convert = ["convert", "recursive", f"--workdir={folder / 'dense'}", f"--config={target}"]
    _, err = command(*convert, f"--output={folder / 'none'}", code=2)
    assert_one_line(err, "convert: ", 4, 6)


@pytest.mark.slow
def test_a_fold_says_what_it_chose_and_scores_as_it_says(folder, command):
    fold = ["convert", "fold", f"--workdir={folder / 'dense'}", "--num_batches=1"]
    chosen = "--keep=3", "--gate_steps=2", "--num_groups=2", "--shared_keys=1", "--cosine=-1"
    out, _ = command(*fold, *chosen, f"--output={folder / 'folded'}")
    for said in ("gate", "left out", "group 1", "reads keys of", "cosine"):
        assert said in out
    before, after = nats(command, folder / "dense"), nats(command, folder / "folded")
    assert f"loss {before:.4f} before, {after:.4f} after" in out
    for wrong, number in {
        "--keep=5": 4,
        "--num_groups=9": 4,
        "--keep=4": 4,
        "--shared_heads=0.01": 0.01,
    }.items():
        _, err = command(*fold, wrong, f"--output={folder / 'no'}", code=2)
        assert_one_line(err, wrong.partition("=")[0], number)


@pytest.mark.slow
def test_another_architecture_takes_what_fits(folder, command):
    convert = ["convert", "recursive", f"--workdir={folder / 'dense'}", "--config.block.mlp_dim=48"]
    _, err = command(*convert, f"--output={folder / 'no'}", code=2)
    assert_one_line(err, "convert: ", 48, 32)
    out, _ = command(*convert, "--others=new", f"--output={folder / 'wider'}")
    assert "core.mlp.up: new" in out and "core.attention" not in out
