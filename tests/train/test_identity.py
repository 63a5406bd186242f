"""What a checkpoint and the run that goes on from it must share, and how it is said if not."""

import copy
import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from recursia import config
from recursia.errors import CheckpointError
from recursia.workdir import checkpoint, directory, identity
from tests.helpers.blocks import altered, flat
from tests.helpers.refusals import refused
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
FOLDER = pathlib.Path("no-data-is-read")
RUN = tiny_run(FOLDER)
OTHER = DATA | {"fingerprint": "b" * 64}


def meta(run, data=DATA):
    """Returns what is saved, as it is read."""
    return json.loads(json.dumps({"format_version": 1, **directory.identity(run, 257, data)}))


def assert_refused(theirs, ours, *parts):
    with refused(CheckpointError, *parts) as refusal:
        identity.same(theirs, ours, "--workdir=x")
    return str(refusal.value)


def test_a_run_is_itself_and_how_its_steps_are_computed_is_no_part_of_it():
    recomputed = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, remat="block"))
    for run in (RUN, recomputed):
        identity.same(meta(RUN), directory.identity(run, 257, DATA), "x")


def test_another_system_is_named_by_its_kind_alone():
    ours = directory.identity(tiny_run(FOLDER, "fixed"), 257, DATA)
    said = assert_refused(meta(RUN), ours, "--workdir=x", "depth.kind", "expert_choice", "fixed")
    assert said.count("in this run") == 1


def test_fields_that_differ_are_named_with_both_values():
    wider = copy.deepcopy(values(FOLDER)["model"])
    wider["block"]["norm_eps"] = 1e-3
    wider["block"]["feedforward"]["mlp_dim"] = 48
    ours = directory.identity(tiny_run(FOLDER, model=wider), 300, DATA)
    said = assert_refused(
        meta(RUN),
        ours,
        "model.block.feedforward.mlp_dim 32 in its checkpoints, 48 in this run",
        "model.block.norm_eps 1e-05 in its checkpoints, 0.001 in this run",
        "model.vocab_size 257 in its checkpoints, 300 in this run",
    )
    assert "embed_dim" not in said


@pytest.mark.parametrize(
    ("name", "value", "part"),
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
def test_other_data_is_named_by_the_field_and_not_by_its_hash(name, value, part):
    ours = directory.identity(RUN, 257, DATA | {name: value})
    said = assert_refused(meta(RUN, OTHER), ours, part)
    assert "aaaa" not in said and said.count("in this run") <= 1


def test_the_same_contents_under_other_names_are_the_same_data():
    identity.same(meta(RUN), directory.identity(RUN, 257, DATA | {"files": ["moved"]}), "x")


def test_an_older_checkpoint_says_only_whether_its_data_differs():
    old = meta(RUN, {"fingerprint": "b" * 64})
    assert_refused(old, directory.identity(RUN, 257, DATA), "have seen other data")
    same = meta(RUN, {"fingerprint": DATA["fingerprint"]})
    identity.same(same, directory.identity(RUN, 257, DATA), "x")


def test_what_is_seen_across_documents_is_part_of_the_data():
    apart = values(FOLDER)["data"] | {"cross_document_attention": False}
    ours = directory.identity(tiny_run(FOLDER, data=apart), 257, DATA)
    field = "data.cross_document_attention True in its checkpoints, False in this run"
    assert_refused(meta(RUN), ours, field)


def test_many_differences_are_counted():
    other = values(FOLDER)["model"]
    names = ("embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "norm_eps")
    double = {name: 2 * getattr(flat(RUN.model.block), name) for name in names}
    other["block"] = config.to_dict(altered(RUN.model.block, **double)) | {"kind": "pre_norm"}
    ours = directory.identity(tiny_run(FOLDER, model=other), 257, DATA)
    assert assert_refused(meta(RUN), ours, "and 1 more").count("in this run") == 5


@pytest.mark.parametrize(
    ("wanted", "parts"),
    [
        ({"up": (2, 3)}, ("params.core.up", (1, 2, 3), (2, 3))),
        ({"up": (1, 2, 3), "in": (4,)}, ("params.core.in", None, (4,))),
    ],
    ids=["a bank of several axes", "another name"],
)
def test_parameters_that_lie_otherwise_are_refused_in_one_line(tmp_path, wanted, parts):
    saves = checkpoint.Checkpoints(tmp_path / "checkpoints", 1)
    saves.save(0, {"params": {"core": {"up": np.ones((1, 2, 3), np.float32)}}}, {})
    saves.finish()
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shaped = lambda shape: jax.ShapeDtypeStruct(shape, np.float32, sharding=where)
    with refused(CheckpointError, *parts, "train anew"):
        saves.restore(0, {"params": {"core": {n: shaped(size) for n, size in wanted.items()}}})
    saves.close()
