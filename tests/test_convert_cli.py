"""`recursia convert recursive`: from a run to a run that starts where it ended."""

import json

import pytest

from recursia import cli
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


def nats(capsys, workdir):
    capsys.readouterr()
    assert cli.main(["eval", f"--workdir={workdir}", "--json", "--num_batches=1"]) == 0
    return json.loads(capsys.readouterr().out)["nats_per_token"]


def test_full_rank_adapters_give_back_the_dense_run(folder, capsys):
    target = written(folder, "relaxed", RELAXED)
    convert = ["convert", "recursive", f"--workdir={folder / 'dense'}", f"--config={target}"]
    assert cli.main([*convert, "--start=average", f"--output={folder / 'made'}"]) == 0
    assert abs(nats(capsys, folder / "made") - nats(capsys, folder / "dense")) < 1e-4
    assert cli.main([*convert, f"--output={folder / 'made'}"]) == 2
    assert "is not empty" in capsys.readouterr().err
    start = f"--config.train.init_from={folder / 'made'}"
    train = ["train", f"--config={target}", f"--workdir={folder / 'again'}", start]
    assert cli.main(train) == 0


def test_a_model_of_other_widths_is_refused_in_one_line(folder, capsys):
    target = written(folder, "deeper", {**RELAXED, "num_layers": 6})
    convert = ["convert", "recursive", f"--workdir={folder / 'dense'}", f"--config={target}"]
    assert cli.main([*convert, f"--output={folder / 'none'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("recursia: convert: ") and err.count("\n") == 1
    assert "4" in err and "6" in err
