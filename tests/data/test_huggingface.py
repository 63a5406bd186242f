"""Data sets of Hugging Face, from a folder on disk; the hub is asked for nothing."""

import json
import sys
import types

import pytest

from recursia.data import named, units
from recursia.data.sources import huggingface
from tests.helpers.corpora import prepare, read

TEXTS = [f"row {i}, zwei ü 三" for i in range(20)]
COMMIT = "0123456789" * 4


@pytest.fixture
def dataset(put, tmp_path, monkeypatch):
    """A folder with two files of a split; a cache of its own, and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    put("set/train-0.jsonl", TEXTS[:9])
    put("set/train-1.jsonl", TEXTS[9:])
    put("set/test.jsonl", ["held out"])
    return tmp_path / "set"


def test_rows_are_documents_in_the_order_of_the_files(dataset, put, tmp_path, monkeypatch):
    path = f"hf:{dataset}:train"
    assert read(path) == read(f"hf:{dataset}") == TEXTS
    assert read(f"hf:{dataset}:test") == ["held out"]
    lines = [str(dataset / f"train-{i}.jsonl") for i in range(2)]
    how = {"validation_fraction": 0.3}
    here, there = (
        prepare(files, tmp_path / name, **how) for files, name in ((lines, "a"), ([path], "b"))
    )
    assert here["fingerprint"] == there["fingerprint"]
    (entry,) = there["sources"]
    assert entry["name"] == "hf:set:train"
    monkeypatch.setattr(units, "UNIT_BYTES", 1)
    assert prepare([path], tmp_path / "c", **how) == there
    assert len(named.of(path).parts(1)) == 2
    assert prepare([path], tmp_path / "c", **how) == there
    put("set/train-1.jsonl", TEXTS[8:])
    with pytest.raises(ValueError, match="other sources"):
        prepare([path], tmp_path / "c", **how)


def test_what_cannot_be_read_is_one_line(dataset, put, refused, monkeypatch):
    bad = lambda path, *parts, **how: refused(lambda: read(path, **how), *parts)
    bad(f"hf:{dataset}:no", f"hf:{dataset}:no", "cannot be read")
    bad(f"hf:{dataset}:train", "no field 'body'", "['text']", text_field="body")
    bad(f"hf:{dataset}/none", "is no folder")
    bad("hf:a/b:c:d:e", "hf:NAME[@REVISION][:CONFIG][:SPLIT]")
    bad("hf:nobody/nothing", "hf:nobody/nothing", "cannot be read", "the network")
    put("set/train-1.jsonl", json.dumps({"text": None}) + "\n")
    bad(f"hf:{dataset}", "NoneType", "on_error=skip")
    monkeypatch.setitem(sys.modules, "datasets", None)
    bad(f"hf:{dataset}", "pip install 'recursia[hf]'")


def test_the_hub_is_read_at_one_commit(monkeypatch):
    asked = []

    class Rows(list):
        num_shards = 1

    library = types.SimpleNamespace(
        dataset_info=lambda name, revision, timeout: types.SimpleNamespace(sha=COMMIT),
        load_dataset=lambda name, config, **how: asked.append((name, config, how)) or Rows(),
    )
    monkeypatch.setattr(huggingface, "_library", lambda path: library)
    found = named.of("hf:owner/name@main:en:validation")
    assert found.path == found.name == f"hf:owner/name@{COMMIT}:en:validation"
    assert list(found.records("text")) == [] and found.stamp == (0, COMMIT)
    how = {"split": "validation", "streaming": True, "revision": COMMIT}
    assert asked == [("owner/name", "en", how)]
    library.dataset_info = None  # what names a commit is not looked up
    assert named.of(found.path) == found
    assert named.of(f"hf:owner/name@{COMMIT}").name.endswith(f"{COMMIT}:train")
