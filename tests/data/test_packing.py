import json
import pathlib

import numpy as np
import pytest

from recursia.data.packing import Reader, Writer
from recursia.data.tokenizer import ByteTokenizer
from recursia.errors import DataError

TEXTS = ["ab", "c", "defghijk", "lm", "n"]


class Wide(ByteTokenizer):
    vocab_size = (1 << 16) + 1


def test_every_document_is_followed_by_the_end_of_text_and_boundaries_are_offsets(pack):
    reader = Reader(pack("p", TEXTS))
    (tokens,), (documents,) = reader.tokens("train"), reader.documents("train")
    assert tokens.dtype == np.dtype("<u2") and documents.dtype == np.dtype("<i8")
    assert documents[:].tolist() == [0, 3, 5, 14, 17]
    ends = [*documents[1:].tolist(), len(tokens)]
    for start, end, text in zip(documents, ends, TEXTS, strict=True):
        assert tokens[start:end].tolist() == [*text.encode(), 256]


def test_a_shard_is_over_its_size_only_for_one_long_document(pack):
    reader = Reader(pack("p", TEXTS, shard_tokens=5))
    shards = reader.split("train")["shards"]
    assert [shard["tokens"] for shard in shards] == [5, 9, 5]
    assert [shard["documents"] for shard in shards] == [2, 1, 2]
    assert [shard["bytes"] for shard in shards] == [3, 8, 3]
    assert (
        np.concatenate(reader.tokens("train")).tolist()
        == Reader(pack("q", TEXTS)).tokens("train")[0][:].tolist()
    )
    totals = {"tokens": 19, "documents": 5, "bytes": 14}
    assert {key: reader.split("train")[key] for key in totals} == totals


def test_a_vocabulary_over_65536_takes_four_bytes(pack):
    reader = Reader(pack("p", TEXTS, tokenizer=Wide()))
    assert reader.tokens("train")[0].dtype == np.dtype("<u4")
    assert reader.manifest["dtype"] == "uint32"


def test_the_fingerprint_is_of_the_tokens_not_of_names(pack):
    first, moved, other = (
        Reader(pack(name, texts)) for name, texts in (("p", TEXTS), ("q", TEXTS), ("r", TEXTS[:4]))
    )
    assert first.fingerprint == moved.fingerprint != other.fingerprint
    wide = Reader(pack("w", TEXTS, tokenizer=Wide()))
    assert wide.fingerprint != first.fingerprint


def test_the_tokenizer_comes_back(pack):
    reader = Reader(pack("p", TEXTS))
    assert reader.tokenizer.fingerprint == reader.tokenizer_fingerprint
    assert reader.vocab_size == 257 and reader.end_of_text == 256


@pytest.mark.parametrize("error", [DataError("x"), KeyboardInterrupt()])
def test_an_interrupted_writer_leaves_nothing(tmp_path, error):
    with (
        pytest.raises(type(error)),
        Writer(str(tmp_path / "out"), ByteTokenizer(), 5) as writer,
    ):
        writer.add("train", [1, 2, 3], 3)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing_that_reads_as_finished(tmp_path):
    writer = Writer(str(tmp_path / "out"), ByteTokenizer(), 5)
    writer.add("train", [1, 2, 3], 3)
    (left,) = tmp_path.iterdir()
    for path in (tmp_path / "out", left):
        with pytest.raises(DataError):
            Reader(str(path))
    writer.__exit__()


def test_damage_is_one_line(pack, refused):
    folder = pathlib.Path(pack("p", TEXTS))
    read = lambda: Reader(str(folder))
    refused(lambda: Reader(str(folder / "none")), "no such folder")
    refused(lambda: read().split("test"), "'test'", "train, validation")
    tokens = folder / "train-00000.tokens"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-1])
    refused(read, "train-00000.tokens", "37 bytes", "38")
    tokens.unlink()
    refused(read, "train-00000.tokens", "missing", "38")
    tokens.write_bytes(whole)
    manifest = json.loads((folder / "manifest.json").read_text())
    for text, *parts in (
        (json.dumps(manifest | {"format_version": 7}), "format_version is 7 but 1"),
        (json.dumps({"format_version": 1}), "damaged", "dtype"),
        (json.dumps(manifest | {"splits": 3}), "damaged"),
        (json.dumps(manifest | {"dtype": "O"}), "damaged", "'O'"),
        (json.dumps(manifest | {"dtype": ["uint16"]}), "damaged"),
        ("[" * 100_000, "damaged"),
        ("{", "damaged"),
        ("[]", "damaged"),
    ):
        (folder / "manifest.json").write_text(text)
        refused(read, "manifest.json", *parts)
    (folder / "manifest.json").unlink()
    refused(read, "holds no manifest.json")


def test_a_document_may_come_in_parts(tmp_path, pack):
    def parted(shard_tokens, size):
        folder = tmp_path / f"{shard_tokens} by {size}"
        with Writer(str(folder), ByteTokenizer(), shard_tokens) as writer:
            for text in TEXTS:
                ids = ByteTokenizer().encode(text)
                for at in range(0, len(ids), size):
                    writer.extend("train", ids[at : at + size])
                writer.end("train", len(ids))
            return writer.finish({})

    for shard_tokens in (1, 4, 5, 9, 10, 14, 100):
        whole = Reader(pack(f"{shard_tokens}", TEXTS, (), shard_tokens)).manifest
        for size in (1, 2, 3):
            assert parted(shard_tokens, size)["splits"] == whole["splits"]
