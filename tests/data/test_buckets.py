"""Prepared data in a bucket gives the batches that it gives on disk, and fails in one line."""

import os
import pathlib
import time

import numpy as np
import pytest

from recursia import buckets, storage
from recursia.data import prepare as prepare_lib
from recursia.data import remote, verification
from recursia.data.loader import Loader
from recursia.data.packing import Reader
from recursia.data.windows import Windows
from tests.helpers import faulty
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


@pytest.mark.slow
def test_sources_may_lie_in_a_bucket(corpus, bucket, tmp_path, refused):
    here = prepare(corpus, tmp_path / "here")
    for file in map(pathlib.Path, corpus):
        buckets.path(f"{bucket}/in/{file.name}").write_bytes(file.read_bytes())
    assert prepare([f"{bucket}/in"], tmp_path / "folder") == here
    files = [f"{bucket}/in/a.jsonl", f"{bucket}/in/b*", f"{bucket}/in/c.txt"]
    assert prepare(files, tmp_path / "files") == here
    for path in (f"{bucket}/no.txt", f"{bucket}/in/*.parquet"):
        refused(lambda path=path: prepare([path], tmp_path / "out"), path)


@pytest.fixture
def faults(emulator, monkeypatch):
    """What requests of tensorstore meet between here and the emulated bucket."""
    variable = {"gs": "TENSORSTORE_GCS_HTTP_URL", "s3": "AWS_ENDPOINT_URL_S3"}[emulator]
    there = os.environ["TENSORSTORE_GCS_HTTP_URL" if emulator == "gs" else "AWS_ENDPOINT_URL"]
    with faulty.before(there) as (url, faults):
        monkeypatch.setenv(variable, url)
        yield faults


def test_a_read_that_fails_is_tried_again(data, copied, faults):
    there = loader(copied)
    faults.left = ["refuse", "refuse", 0.3, "refuse"]
    batch = there.batch(0)
    assert not faults.left and faults.asked > 4
    for key, value in loader(data).batch(0).items():
        np.testing.assert_array_equal(batch[key], value)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refuse", 30])
def test_a_bucket_that_does_not_answer_is_one_line_in_time(
    copied, faults, monkeypatch, refused, fault
):
    there = loader(copied)
    monkeypatch.setattr(storage, "SECONDS", 2.0)
    faults.always = fault
    began = time.monotonic()
    refused(lambda: there.batch(0), f"{copied}/train-0", "cannot be read", "no answer within 2 s")
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_rows_of_a_batch_are_read_at_once_and_kept(copied, faults, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 64)
    there = loader(copied, batch_size=16)
    faults.always = 0.1
    there.batch(0)
    assert faults.most_at_once >= 8
    asked = faults.asked
    there.batch(0)
    assert faults.asked == asked
    small = remote.Cache(100)
    for number in range(9):
        small.put("a", number, b"x" * 40)
    assert [small.get("a", number) is not None for number in range(9)] == [False] * 7 + [True] * 2


@pytest.mark.slow
def test_an_object_that_changes_or_goes_is_one_line(copied, refused, monkeypatch):
    monkeypatch.setattr(remote.Cache, "put", lambda *_: None)
    there = loader(copied)
    every = lambda: [there.batch(step) for step in range(40)]
    every()
    names = [
        f"{copied}/{shard['name']}.tokens" for shard in Reader(copied).split("train")["shards"]
    ]
    for name in names:
        path = buckets.path(name)
        path.write_bytes(path.read_bytes()[::-1])
    refused(every, copied, "it has changed since the run began")
    for name in names:
        buckets.path(name).unlink()
    refused(every, copied, "it is gone")
    refused(lambda: Reader(copied), "train-00000.tokens: missing")


@pytest.mark.slow
def test_what_was_found_whole_is_known_by_size_and_generation(copied, tmp_path, refused):
    known = tmp_path / "known"
    check = lambda: verification.checked((copied,), known, ("train", "validation"))
    check()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "_digest", None)  # nothing is read again
        check()
    path = buckets.path(f"{copied}/train-00001.tokens")
    raw = path.read_bytes()
    path.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    refused(check, "train-00001.tokens", "sha256")
    path.write_bytes(raw)
    check()
