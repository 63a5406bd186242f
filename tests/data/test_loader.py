import collections
import threading
import time

import jax
import numpy as np
import pytest

from recursia.data.loader import Loader, evaluation_batches, rows_here
from recursia.data.tokenizer import from_spec
from recursia.data.windows import Windows
from recursia.errors import ConfigError

T = 4


@pytest.fixture
def data(pack):
    texts = [f"{i:03d}" * (1 + i % 3) for i in range(90)]
    return pack("data", texts, validation=["validation text", "more"], shard_tokens=300)


def loader(*directories, weights=None, **changed):
    options = dict(split="train", seq_len=T, batch_size=4, seed=3, cross_document_attention=False)
    weights = weights or (1.0,) * len(directories)
    return Loader(tuple(directories), weights, **(options | changed))


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_batch_is_a_function_of_the_step(data):
    first, second = loader(data), loader(data)
    steps = [7, 0, 123456789, 3]
    assert all(same(first.batch(s), second.batch(s)) for s in steps)
    assert same(first.batch(7), second.batch(7))
    batch = first.batch(0)
    assert set(batch) == {"tokens", "targets", "segment_ids", "positions", "weights"}
    assert all(value.shape == (4, T) for value in batch.values())
    assert batch["tokens"].dtype == np.int32 and batch["weights"].dtype == np.float32
    assert not same(first.batch(0), loader(data, seed=4).batch(0))


def test_iterate_equals_batch_by_batch(data):
    source = loader(data)
    for start in (0, 5, 10**9):
        batches = source.iterate(start)
        for step, batch in zip(range(start, start + 40), batches, strict=False):
            assert same(batch, source.batch(step)), step
        batches.close()


def test_closing_an_iterator_ends_its_threads(data):
    alive = lambda: sum("grain-prefetch" in t.name for t in threading.enumerate())
    before = alive()
    batches = loader(data).iterate(0)
    next(batches)
    assert alive() > before
    batches.close()
    for _ in range(100):
        if alive() == before:
            break
        time.sleep(0.05)
    assert alive() == before


@pytest.mark.parametrize("dealt", [[(0, 1), (2, 3)], [(0,), (1,), (2,), (3,)], [(0, 2), (1, 3)]])
def test_batches_do_not_depend_on_the_processes_that_read_them(data, dealt):
    whole = loader(data)
    parts = [loader(data, rows=rows) for rows in dealt]
    assert {part.fingerprint for part in parts} == {whole.fingerprint}
    for step in (0, 9):
        for part, rows in zip(parts, dealt, strict=True):
            assert same(part.batch(step), {k: v[list(rows)] for k, v in whole.batch(step).items()})
    assert same(next(parts[1].iterate(2)), parts[1].batch(2))


def test_a_process_reads_only_its_own_rows(data, monkeypatch):
    asked, real = [], Windows.__getitem__
    monkeypatch.setattr(Windows, "__getitem__", lambda self, i: asked.append(i) or real(self, i))
    part = loader(data, batch_size=8, rows=(5, 6))
    part.batch(0)
    assert len(asked) == 2


class Devices:
    """A sharding of which a process holds the given rows."""

    def __init__(self, *places):
        self.places, self.device_set = places, set(range(8))

    def addressable_devices_indices_map(self, shape):
        return {i: (place, slice(None)) for i, place in enumerate(self.places)}


def test_the_rows_of_a_process_are_those_that_its_devices_hold():
    devices = np.array(jax.devices()).reshape(2, 4)
    mesh = jax.sharding.Mesh(devices, ("data", "tensor"))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    assert rows_here(split, (6, T)) == tuple(range(6))
    apart = Devices(slice(4, 6), slice(0, 2))  # of a mesh that deals hosts out in turn
    assert rows_here(apart, (8, T)) == (0, 1, 4, 5)
    alike = Devices(slice(2, 4), slice(2, 4))  # an axis that does not split the batch
    assert rows_here(alike, (8, T)) == (2, 3)
    assert rows_here(Devices(slice(None)), (3, T)) == (0, 1, 2)
    with pytest.raises(ConfigError, match=r"none of the 8 devices .* 8 rows"):
        rows_here(Devices(), (8, T))


def test_rows_of_evaluation_are_those_of_the_whole_batch(data):
    windows = Windows(data, "validation", T, keep_tail=True)
    whole = list(evaluation_batches(windows, 3, False, None))
    assert (whole[-1]["weights"][-1] == 0).all()  # rows of nothing are dealt out too
    for rows in ((0,), (1, 2), (2,)):
        part = list(evaluation_batches(windows, 3, False, None, rows))
        for ours, theirs in zip(part, whole, strict=True):
            assert same(ours, {k: v[list(rows)] for k, v in theirs.items()})


def test_an_epoch_holds_every_row_once_and_the_next_has_another_order(data):
    windows = Windows(data, "train", T)
    source = loader(data, batch_size=1)
    row = lambda step: source.batch(step)["tokens"].tobytes()
    epochs = [[row(e * len(windows) + i) for i in range(len(windows))] for e in range(2)]
    every = collections.Counter(windows[i]["tokens"].tobytes() for i in range(len(windows)))
    assert collections.Counter(epochs[0]) == collections.Counter(epochs[1]) == every
    assert epochs[0] != epochs[1]


def test_a_neighbouring_seed_does_not_repeat_the_next_epoch(data):
    size = len(Windows(data, "train", T))
    one, two = loader(data, seed=1, batch_size=size), loader(data, seed=2, batch_size=size)
    assert not same(one.batch(1), two.batch(0))


def test_directories_are_mixed_by_weight(data, pack):
    other = pack("other", ["#" * 200])
    mixed = loader(data, other, weights=(3.0, 1.0), batch_size=100)
    shares = [np.mean(mixed.batch(s)["tokens"][:, 0] == ord("#")) for s in range(3)]
    np.testing.assert_allclose(shares, 0.25, atol=0.02)
    assert same(next(mixed.iterate(7)), mixed.batch(7))
    assert mixed.fingerprint == loader(data, other, weights=(6, 2), batch_size=100).fingerprint


def test_attention_across_documents_makes_a_row_one_document(data):
    apart, joined = loader(data), loader(data, cross_document_attention=True)
    a, b = apart.batch(1), joined.batch(1)
    for key in ("tokens", "targets", "weights"):
        assert np.array_equal(a[key], b[key])
    assert (b["segment_ids"] == 1).all() and (a["segment_ids"] > 1).any()
    assert (b["positions"] == np.arange(T)).all() and b["positions"].dtype == np.int32


def test_the_fingerprint_knows_all_that_determines_the_batches(data, pack):
    other = pack("other", ["#" * 200])
    variants = [
        loader(data),
        loader(other),
        loader(data, seed=4),
        loader(data, seq_len=5),
        loader(data, batch_size=8),
        loader(data, split="validation"),
        loader(data, other),
        loader(other, data),
        loader(data, other, weights=(1, 2)),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)


def test_evaluation_covers_every_target_once_in_order(data):
    windows = Windows(data, "validation", T, keep_tail=True)
    batches = list(evaluation_batches(windows, 3, False, None))
    assert all(b["tokens"].shape == (3, T) for b in batches)
    targets = np.concatenate([b["targets"][b["weights"] == 1] for b in batches])
    stream = np.concatenate(windows.reader.tokens("validation"))
    assert np.array_equal(targets, stream[1:])
    padding = np.concatenate([b["targets"][b["weights"] == 0] for b in batches])
    assert (padding == 256).all() and len(batches) == -(-len(windows) // 3)
    limited = list(evaluation_batches(windows, 3, True, 1))
    assert len(limited) == 1 and (limited[0]["positions"] == np.arange(T)).all()


def test_a_split_of_one_row_repeats(pack):
    source = loader(pack("one", ["abcd"]), batch_size=2)
    assert (source.batch(10**6)["tokens"] == list(b"abcd")).all()


def test_wrong_options_are_one_line(data, pack, refused):
    wrong = lambda call, *parts: refused(call, *parts, kind=ConfigError, code=2)
    wrong(lambda: loader(data, batch_size=0), "batch_size 0", "at least 1")
    wrong(lambda: loader(data, rows=(3, 4)), "(3, 4)", "4 of a batch", "0 to 3")
    wrong(lambda: loader(data, rows=()), "()", "4 of a batch")
    wrong(lambda: loader(data, weights=(1, 2)), "1 directories", "2 weights")
    wrong(lambda: loader(data, data, weights=(1, 0)), "above 0")
    wrong(lambda: loader(data, seed=-1), "seed -1")
    wrong(lambda: loader(), "0 directories")
    texts = ["some other text to learn from"]
    bpe = pack("bpe", texts, tokenizer=from_spec("bpe:258", lambda: iter(texts)))
    refused(
        lambda: loader(data, bpe), "bpe of 258 tokens (", "byte of 257 tokens (", "--tokenizer="
    )
    refused(lambda: loader(data, seq_len=10**4), "10001")
