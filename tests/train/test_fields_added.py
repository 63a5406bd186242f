"""A run goes on whose checkpoints were written before a field of the model was there."""

import copy
import json

import pytest

from recursia.errors import CheckpointError
from recursia.workdir.directory import identity
from recursia.workdir.identity import same
from tests.helpers.runs import tiny_run

DATA = {"fingerprint": "f"}


def test_a_field_added_since_is_at_its_default(tmp_path):
    wanted = identity(tiny_run(tmp_path), 257, DATA)
    meta = json.loads(json.dumps(wanted))
    mixer = meta["model"]["block"]["mixer"]
    for name in ("score_cap", "head_norm_eps", "rope_stretch"):
        del mixer[name]
    same(copy.deepcopy(meta), wanted, "here")
    wanted["model"]["block"]["mixer"]["score_cap"] = 2.0
    with pytest.raises(CheckpointError, match=r"score_cap.*0\.0.*2\.0"):
        same(meta, wanted, "here")


def test_a_field_removed_since_is_told(tmp_path):
    wanted = identity(tiny_run(tmp_path), 257, DATA)
    meta = json.loads(json.dumps(wanted))
    meta["model"]["block"]["mixer"]["former"] = 1
    with pytest.raises(CheckpointError, match=r"former"):
        same(meta, wanted, "here")
