import dataclasses
import json
import pathlib

import pytest

from recursia.data import prepare as prepare_lib
from recursia.data.packing import Reader
from recursia.data.tokenizer import from_spec
from recursia.errors import ConfigError

TEXTS = [f"document number {i}, with some words to learn" for i in range(40)]


def prepare(inputs, output, **changed):
    options = prepare_lib.Options(**({"tokenizer": "byte", "validation_fraction": 0.3} | changed))
    return prepare_lib.prepare(tuple(inputs), str(output), **vars(options))


def texts(directory, split):
    reader = Reader(str(directory))
    found = []
    for tokens, starts in zip(reader.tokens(split), reader.documents(split), strict=True):
        ends = [*starts[1:].tolist(), len(tokens)]
        found += [reader.tokenizer.decode(tokens[a:b]) for a, b in zip(starts, ends, strict=True)]
    return found


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:280"])
def test_every_document_is_in_one_split_and_comes_back(put, tmp_path, tokenizer):
    manifest = prepare([put("a.jsonl", [*TEXTS, " \n", ""])], tmp_path / "out", tokenizer=tokenizer)
    train, held_out = (texts(tmp_path / "out", split) for split in ("train", "validation"))
    assert sorted(train + held_out) == sorted(TEXTS) and 4 < len(held_out) < 20
    splits = manifest["splits"]
    assert splits["train"]["bytes"] == sum(len(text.encode()) for text in train)
    assert splits["train"]["documents"] == len(train)


def test_the_split_of_a_document_does_not_depend_on_the_others(put, tmp_path):
    prepare([put("a.jsonl", TEXTS)], tmp_path / "a")
    prepare([put("b.jsonl", TEXTS[::-2])], tmp_path / "b")
    assert set(texts(tmp_path / "b", "train")) <= set(texts(tmp_path / "a", "train"))


def test_validation_files_are_the_validation_split(put, tmp_path):
    inputs, held_out = put("a.txt", "training text"), put("v.txt.gz", "held out")
    manifest = prepare([inputs], tmp_path / "out", validation=(held_out,))
    assert texts(tmp_path / "out", "train") == ["training text"]
    assert texts(tmp_path / "out", "validation") == ["held out"]
    named = [(row["split"], row["name"]) for row in manifest["sources"]]
    assert named == [("train", "a.txt"), ("validation", "v.txt.gz")]


def test_bpe_learns_from_the_training_split_only(put, tmp_path):
    inputs = put("a.jsonl", TEXTS)
    for name, words in (("p", "zebra zebra zebra"), ("q", "quagga quagga")):
        prepare(
            [inputs], tmp_path / name, tokenizer="bpe:300", validation=(put(name + ".txt", words),)
        )
    p, q = (Reader(str(tmp_path / name)) for name in ("p", "q"))
    assert p.tokenizer_fingerprint == q.tokenizer_fingerprint
    assert p.tokenizer_fingerprint == from_spec("bpe:300", lambda: iter(TEXTS)).fingerprint


def test_the_same_preparation_is_returned_and_another_refused(put, tmp_path, refused):
    path, out = put("a.jsonl", TEXTS), tmp_path / "out"
    first = prepare([path], out)
    written = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert prepare([path], out) == first == json.loads((out / "manifest.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == written
    refused(lambda: prepare([path], out, tokenizer="bpe:257"), "out", "other options")
    put("a.jsonl", [*TEXTS, "one more"])
    refused(lambda: prepare([path], out), "other sources")
    tokens = out / "train-00000.tokens"
    tokens.write_bytes(tokens.read_bytes() + b"x")
    refused(lambda: prepare([path], out), "train-00000.tokens", "bytes")


def test_the_manifest_names_no_folder(put, tmp_path):
    prepare([put("deep/a.jsonl", TEXTS)], tmp_path / "out")
    for path in (tmp_path / "out").glob("*.json"):
        assert str(tmp_path) not in path.read_text() and "deep" not in path.read_text()


def test_moved_and_renamed_sources_give_the_same_fingerprint(put, tmp_path):
    a = prepare([put("a.jsonl", TEXTS)], tmp_path / "out")
    b = prepare([put("deep/b.jsonl.zst", TEXTS)], tmp_path / "moved")
    assert a["fingerprint"] == b["fingerprint"]


def test_an_empty_folder_is_a_fine_output(put, tmp_path):
    (tmp_path / "out").mkdir()
    prepare([put("a.jsonl", TEXTS)], tmp_path / "out")
    prepare([put("a.jsonl", TEXTS)], tmp_path / "new/deep/out")
    assert (tmp_path / "new/deep/out/manifest.json").is_file()


def test_skipped_lines_are_reported_once(put, tmp_path, capsys):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "broken\n"
    prepare([put("a.jsonl", lines)], tmp_path / "out", tokenizer="bpe:260", on_error="skip")
    assert capsys.readouterr().err.count("skipped 1 broken") == 1


def test_each_user_error_is_one_line_and_writes_nothing(put, tmp_path, refused):
    good, out = put("good.jsonl", TEXTS), tmp_path / "out"
    broken, blank = put("broken.jsonl", '{"text": "a"}\n{'), put("blank.jsonl", [" ", ""])
    other = put("other/notes.txt", "mine")
    for tokenizer in ("byte", "bpe:260"):
        run = lambda *inputs, out=out, tokenizer=tokenizer, **changed: (
            lambda: prepare(inputs, out, tokenizer=tokenizer, **changed)
        )
        refused(run(), "0 input files")
        refused(run(str(tmp_path / "none.txt")), "does not exist")
        refused(run(good, broken, out=out / "deep"), "broken.jsonl:2: ", "on_error=skip")
        refused(run(blank), "0 documents")
        refused(run(good, validation=(blank,)), "0 documents of the validation files")
        refused(run(blank, validation=(good,)), "0 documents of the inputs")
        refused(run(good, validation=(good,)), "named 2 times")
        refused(run(good, text_field="body"), "good.jsonl:1: no field 'body'")
        refused(run(good, out=pathlib.Path(other).parent), "1 entries", "remove it")
        refused(run(good, out=other), "is a file")
        refused(run(good, out=other + "/out"), "cannot be written")
    refused(lambda: prepare([good], out, tokenizer=str(tmp_path)), "no tokenizer here")
    for name, value in (("validation_fraction", 1.0), ("on_error", "go"), ("shard_tokens", 0)):
        wrong = lambda name=name, value=value: prepare([good], out, **{name: value})
        refused(wrong, name, value, kind=ConfigError, code=2)


def test_the_options_are_the_arguments():
    assert list(prepare_lib.prepare.__kwdefaults__ or {}) == []
    names = {field.name for field in dataclasses.fields(prepare_lib.Options)}
    assert names | {"inputs", "output", "return"} == set(prepare_lib.prepare.__annotations__)


def test_inspect_shows_totals_and_excerpts(put, tmp_path, refused):
    manifest = prepare([put("a.jsonl", TEXTS)], tmp_path / "out", shard_tokens=200)
    shown = prepare_lib.inspect(str(tmp_path / "out"))
    for name, entry in shown["splits"].items():
        assert entry["tokens"] == manifest["splits"][name]["tokens"]
        assert entry["shards"] == len(manifest["splits"][name]["shards"])
        assert len(entry["excerpts"]) == 2 and set(entry["excerpts"]) <= set(TEXTS)
    assert shown["fingerprint"] == manifest["fingerprint"]
    refused(lambda: prepare_lib.inspect(str(tmp_path)), "holds no manifest.json")
