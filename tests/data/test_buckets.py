"""Prepared data in a bucket gives the batches that it gives on disk, and fails in one line."""

import pathlib

import numpy as np
import pytest

from recursia import buckets
from recursia.data import prepare as prepare_lib
from recursia.data import remote
from recursia.data.loader import Loader
from recursia.data.packing import Reader
from recursia.data.windows import Windows
from tests.helpers.corpora import prepare


@pytest.fixture
def data(pack):
    texts = [f"{i:03d}, a text" * (1 + i % 3) for i in range(90)]
    return pack("data", texts, validation=["validation text", "more"], shard_tokens=300)


@pytest.fixture
def copied(data, bucket):
    """The same folder in a bucket."""
    for file in pathlib.Path(data).iterdir():
        buckets.path(f"{bucket}/data/{file.name}").write_bytes(file.read_bytes())
    return f"{bucket}/data"


def loader(directory, **changed):
    how = dict(split="train", seq_len=7, batch_size=4, seed=3, cross_document_attention=False)
    return Loader((directory,), (1.0,), **(how | changed))


def test_batches_are_those_from_disk(data, copied, monkeypatch):
    for block in (16, remote.BLOCK):
        monkeypatch.setattr(remote, "BLOCK", block)
        here, there = loader(data), loader(copied)
        assert here.fingerprint == there.fingerprint
        batches = there.iterate(3)
        for step, batch in zip(range(3, 12), batches, strict=False):
            for key, value in here.batch(step).items():
                np.testing.assert_array_equal(batch[key], value)
        batches.close()
    windows = [Windows(path, "validation", 7, keep_tail=True) for path in (data, copied)]
    rows = [
        [row["tokens"].tolist() for row in map(each.__getitem__, range(len(each)))]
        for each in windows
    ]
    assert rows[0] == rows[1]
    assert Reader(copied).tokenizer.fingerprint == Reader(data).tokenizer_fingerprint
    assert prepare_lib.inspect(copied) == prepare_lib.inspect(data)


@pytest.fixture
def corpus(put):
    texts = [f"document {i}, with some words" for i in range(40)]
    return [put("in/a.jsonl", texts[:20]), put("in/b.jsonl.gz", texts[20:]), put("in/c.txt", "see")]


def test_prepared_into_a_bucket_it_is_what_it_is_on_disk(corpus, bucket, tmp_path, refused):
    here = prepare(corpus, tmp_path / "here", shard_tokens=300)
    how = {"shard_tokens": 300, "partial_folder": str(tmp_path / "unfinished")}
    assert prepare(corpus, f"{bucket}/there", part=(1, 1), **how) is None
    assert not buckets.path(f"{bucket}/there").exists()
    for _ in range(2):  # the second finds it there
        assert prepare(corpus, f"{bucket}/there", **how) == here
    for file in (tmp_path / "here").iterdir():
        assert buckets.path(f"{bucket}/there/{file.name}").read_bytes() == file.read_bytes()
    assert not (tmp_path / "unfinished").exists()
    other = lambda: prepare(corpus[1:], f"{bucket}/there", **how)
    refused(other, f"{bucket}/there", "sources (fewer")


def test_sources_may_lie_in_a_bucket(corpus, bucket, tmp_path, refused):
    here = prepare(corpus, tmp_path / "here")
    for file in map(pathlib.Path, corpus):
        buckets.path(f"{bucket}/in/{file.name}").write_bytes(file.read_bytes())
    assert prepare([f"{bucket}/in"], tmp_path / "folder") == here
    files = [f"{bucket}/in/a.jsonl", f"{bucket}/in/b*", f"{bucket}/in/c.txt"]
    assert prepare(files, tmp_path / "files") == here
    for path in (f"{bucket}/no.txt", f"{bucket}/in/*.parquet"):
        refused(lambda path=path: prepare([path], tmp_path / "out"), path)
