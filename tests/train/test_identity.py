"""What a checkpoint and the run that goes on from it must share, and how it is said if not."""

import copy
import json
import pathlib

import jax
import numpy as np
import pytest

from recursia import config
from recursia.errors import CheckpointError
from recursia.workdir import checkpoint, directory
from tests.helpers.blocks import altered, flat
from tests.helpers.runs import tiny_run, values

DATA = {
    "fingerprint": "a" * 64,
    "files": ["800 documents, 3200 bytes of train.txt"],
    "tokenizer": "byte (257 tokens, 0123456789ab)",
    "weights": [1.0],
    "seed": 0,
    "seq_len": 16,
    "batch_size": 8,
}
RUN = tiny_run(pathlib.Path("no-data-is-read"))
OTHER = DATA | {"fingerprint": "b" * 64}


def meta(run, data=DATA):
    """Returns what is saved, as it is read."""
    return json.loads(json.dumps({"format_version": 1, **directory.identity(run, 257, data)}))


def refusal(theirs, ours):
    with pytest.raises(CheckpointError) as said:
        checkpoint.same(theirs, ours, "--workdir=x")
    assert "\n" not in str(said.value)
    return str(said.value)


def test_a_run_is_itself_and_how_its_steps_are_computed_is_no_part_of_it(tmp_path):
    run = tiny_run(tmp_path)
    checkpoint.same(meta(run), directory.identity(run, 257, DATA), "x")
    other = tiny_run(tmp_path, train=values(tmp_path)["train"] | {"remat": "block"})
    checkpoint.same(meta(run), directory.identity(other, 257, DATA), "x")


def test_another_system_is_told_by_its_kind_alone(tmp_path):
    fixed = tiny_run(tmp_path, "fixed")
    said = refusal(meta(tiny_run(tmp_path)), directory.identity(fixed, 257, DATA))
    assert said == (
        "--workdir=x: depth.kind is expert_choice in its checkpoints, fixed in this run; use "
        "another workdir, or the same configuration"
    )


def test_fields_that_differ_are_named_with_both_values(tmp_path):
    wider = copy.deepcopy(values(tmp_path)["model"])
    wider["block"]["norm_eps"] = 1e-3
    wider["block"]["feedforward"]["mlp_dim"] = 48
    ours = directory.identity(tiny_run(tmp_path, model=wider), 300, DATA)
    said = refusal(meta(RUN), ours)
    assert "model.block.feedforward.mlp_dim 32 in its checkpoints, 48 in this run; " in said
    assert "model.block.norm_eps 1e-05 in its checkpoints, 0.001 in this run; " in said
    assert "model.vocab_size 257 in its checkpoints, 300 in this run; " in said
    assert "embed_dim" not in said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("seed", 1, "data.seed 0 in its checkpoints, 1 in this run"),
        ("seq_len", 8, "train.seq_len 16 in its checkpoints, 8 in this run"),
        ("batch_size", 4, "train.batch_size 8 in its checkpoints, 4 in this run"),
        ("weights", [0.5, 0.5], "data.weights [1.0] in its checkpoints, [0.5, 0.5] in this run"),
        ("files", ["1 documents, 9 bytes of b.txt"], "9 bytes of b.txt'] in this run"),
        ("tokenizer", "bpe (300 tokens, ba)", "'bpe (300 tokens, ba)' in this run"),
        ("fingerprint", "c" * 64, "other data (files, tokenizer, seq_len, batch_size or seed)"),
    ],
)
def test_other_data_is_told_by_the_field_not_by_its_hash(name, value, said):
    found = refusal(meta(RUN, OTHER), directory.identity(RUN, 257, DATA | {name: value}))
    assert said in found and "aaaa" not in found and found.count("in this run") <= 1


def test_the_same_contents_under_other_names_are_the_same_data():
    checkpoint.same(meta(RUN), directory.identity(RUN, 257, DATA | {"files": ["moved"]}), "x")


def test_an_older_checkpoint_says_only_whether_its_data_differs():
    old = meta(RUN, {"fingerprint": "b" * 64})
    assert "have seen other data" in refusal(old, directory.identity(RUN, 257, DATA))
    same = meta(RUN, {"fingerprint": DATA["fingerprint"]})
    checkpoint.same(same, directory.identity(RUN, 257, DATA), "x")


def test_what_is_seen_across_documents_is_part_of_the_data(tmp_path):
    apart = values(tmp_path)["data"] | {"cross_document_attention": False}
    said = refusal(meta(RUN), directory.identity(tiny_run(tmp_path, data=apart), 257, DATA))
    assert "data.cross_document_attention True in its checkpoints, False in this run" in said


def test_many_differences_are_counted(tmp_path):
    other = values(tmp_path)["model"]
    names = ("embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "norm_eps")
    double = {name: 2 * getattr(flat(RUN.model.block), name) for name in names}
    other["block"] = config.to_dict(altered(RUN.model.block, **double)) | {"kind": "pre_norm"}
    said = refusal(meta(RUN), directory.identity(tiny_run(tmp_path, model=other), 257, DATA))
    assert said.count("in this run") == 5 and "; and 1 more; " in said


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"up": (2, 3)}, "params.core.up is (1, 2, 3) there and (2, 3) here; "),
        ({"up": (1, 2, 3), "in": (4,)}, "params.core.in is None there and (4,) here; "),
    ],
    ids=["a bank of several axes", "another name"],
)
def test_parameters_that_lie_otherwise_are_refused_in_one_line(tmp_path, wanted, said):
    saves = checkpoint.Checkpoints(tmp_path / "checkpoints", 1)
    saves.save(0, {"params": {"core": {"up": np.ones((1, 2, 3), np.float32)}}}, {})
    saves.finish()
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shaped = lambda shape: jax.ShapeDtypeStruct(shape, np.float32, sharding=where)
    with pytest.raises(CheckpointError) as refusal:
        saves.restore(0, {"params": {"core": {n: shaped(size) for n, size in wanted.items()}}})
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert str(refusal.value).endswith("or train anew")
    saves.close()
