import gzip
import json
import os

import pytest
import tokenizers
from tokenizers import models

from recursia.data import named
from recursia.data.text import Decoder, NotTextError
from recursia.data.tokenizer import from_spec
from tests.helpers.corpora import read

MARK = b"\xef\xbb\xbf"
LINES = "a\u2028b\x85c\x0bd\x0ce\u2029f\x1cg\r"  # none of these ends a line of JSON


@pytest.mark.parametrize("pack", [lambda raw: raw, gzip.compress], ids=["plain", "gz"])
def test_a_byte_order_mark_is_no_text(put, pack):
    ending = "" if pack(b"a") == b"a" else ".gz"
    assert read(put("a.txt" + ending, pack(MARK + "é\ufeffx".encode()))) == ["é\ufeffx"]
    line = json.dumps({"text": "é"}).encode() + b"\n"
    assert read(put("a.jsonl" + ending, pack(MARK + line + MARK + line))) == ["é", "é"]


def test_a_tokenizers_files_may_begin_with_a_mark(tmp_path):
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    library.add_special_tokens(["</s>"])
    (tmp_path / "tokenizer.json").write_bytes(MARK + library.to_str().encode())
    made = from_spec(str(tmp_path), lambda: iter(()))
    assert made.encode("aab") == [0, 2]
    folder = tmp_path / "two"
    folder.mkdir()
    vocabulary = {"a": 0, "b": 1, "ab": 2, "</s>": 3}
    (folder / "encoder.json").write_bytes(MARK + json.dumps(vocabulary).encode())
    (folder / "vocab.bpe").write_bytes(MARK + b"#version: 0.2\r\na b\r\n")
    assert from_spec(str(folder), lambda: iter(())).encode("aab") == [0, 2]


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_called_by_its_name(put, tmp_path, refused, name):
    raw = json.dumps({"text": "abcdef"}).encode(name)
    for file in ("a.txt", "a.jsonl"):
        path = put(file, raw)
        refused(lambda path=path: read(path), file, name[:6].upper(), "UTF-8")
    path = put("tokenizer.json", raw)
    refused(lambda: from_spec(path, lambda: iter(())), path, name[:6].upper())


def test_a_character_may_lie_across_the_parts_of_a_file():
    raw = MARK + "é日🙂\ufffd".encode()
    for size in range(3, 9):
        decoder = Decoder()
        parts = [decoder.decode(raw[at : at + size]) for at in range(0, len(raw), size)]
        assert "".join([*parts, decoder.decode(b"", is_last=True)]) == "é日🙂\ufffd"


@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("wrong", [b"\xff", b"\xe6\x97x", b"\xe6\x97"])
def test_the_byte_that_is_wrong_is_counted_from_the_start_of_the_file(mark, wrong):
    good = mark + "aé日".encode()
    for size in range(3, 12):
        decoder, raw = Decoder(), good + wrong
        with pytest.raises(NotTextError, match=f"at byte {len(good)}$"):
            for at in range(0, len(raw), size):
                decoder.decode(raw[at : at + size])
            decoder.decode(b"", is_last=True)


def test_lines_end_at_line_feeds_only(put):
    rows = [json.dumps({"text": LINES + str(i)}, ensure_ascii=False) for i in range(3)]
    path = put("a.jsonl", "\n".join(rows).encode())
    assert read(path) == [LINES + str(i) for i in range(3)]
    path = put("b.jsonl", "\r\n".join(rows).encode())
    assert read(path) == [LINES + str(i) for i in range(3)]


def test_a_line_too_long_to_be_read_is_named_or_skipped(put, refused, monkeypatch):
    monkeypatch.setattr("recursia.data.sources.jsonl._LINE", 100)
    monkeypatch.setattr("recursia.data.files.CHUNK", 64)
    path = put("a.jsonl", ["a", "b" * 1000, "c"])
    refused(lambda: read(path), f"{path}:2: longer than 100 bytes")
    assert read(path, "skip") == ["a", "c"]


def test_a_broken_text_file_is_left_out_whole(put):
    path = put("a.txt", b"a" * (3 << 20) + b"\xff")
    found = named.of(path).documents(on_error="skip", warn=False)
    with pytest.raises(ValueError, match="0 documents"):
        next(found)


@pytest.mark.parametrize("spec", ["byte", "bpe:260"])
def test_half_a_surrogate_pair_is_told_in_one_line(spec, refused):
    tokenizer = from_spec(spec, lambda: iter(["abc abc abc"]))
    typed = os.fsdecode(b"caf\xe9")  # as an argument that is no UTF-8 comes
    for text in (typed, json.loads('"caf\\ud83d"')):
        for call in (tokenizer.encode, lambda text: tokenizer.encode_batch(["a", text])):
            refused(lambda call=call, text=text: call(text), "lone surrogate", "character 3")
