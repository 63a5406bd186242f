import contextlib
import hashlib
import json
import pathlib
from unittest.mock import patch

import pytest
import tokenizers

from recursia import console
from recursia.data import pieces
from recursia.data import prepare as prepare_lib
from recursia.data.packing import Reader
from recursia.data.tokenizer import from_spec
from recursia.errors import ConfigError
from tests.helpers.benchmarks import page as page_of
from tests.helpers.benchmarks import result
from tests.helpers.corpora import prepare, texts

TEXTS = [f"document number {i}, with some words to learn" for i in range(40)]


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
    digest = lambda path: hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    assert manifest["sources"] == [
        {"split": "train", "name": "a.txt", "sha256": digest(inputs)},
        {"split": "validation", "name": "v.txt.gz", "sha256": digest(held_out)},
    ]


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
    refused(
        lambda: prepare([path], out, tokenizer="bpe:257"), "out", "tokenizer ('", "now 'bpe:257'"
    )
    put("a.jsonl", [*TEXTS, "one more"])
    refused(lambda: prepare([path], out), "other sources (a.jsonl)")
    both = [put("b.jsonl", TEXTS), put("c.jsonl", TEXTS)]
    prepare(both, tmp_path / "both")
    refused(lambda: prepare(both[::-1], tmp_path / "both"), "sources (fewer, or another order)")
    tokens = out / "train-00000.tokens"
    tokens.write_bytes(tokens.read_bytes() + b"x")
    refused(lambda: prepare([path], out), "train-00000.tokens", "bytes")


def test_folders_names_and_compression_change_nothing(put, tmp_path):
    out, deep = tmp_path / "out", tmp_path / "new/deep/out"
    out.mkdir()  # an empty folder is a fine output
    first = prepare([put("a.jsonl", TEXTS)], out)
    other = prepare([put("deep/b.jsonl.zst", TEXTS)], deep)
    assert first["fingerprint"] == other["fingerprint"]
    for path in deep.glob("*.json"):
        assert str(tmp_path) not in path.read_text() and "deep" not in path.read_text()


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
        refused(run(good, out=pathlib.Path(other).parent), "1 entries", "another output")
        refused(run(good, out=other), "is a file")
        refused(run(good, out=other + "/out"), "cannot be written")
    refused(lambda: prepare([good], out, tokenizer=str(tmp_path)), "no tokenizer here")
    wrong = ("validation_fraction", 1.0), ("on_error", "go"), ("shard_tokens", 0)
    for name, value in (
        *wrong,
        ("tokenizer", "bpe:9"),
        ("tokenizer", "bpe:²"),
        ("end_of_text", "x"),
    ):
        wrong = lambda name=name, value=value: prepare([good], out, **{name: value})
        refused(wrong, name, value, kind=ConfigError, code=2)


def test_inspect_shows_totals_and_excerpts(put, tmp_path, refused):
    manifest = prepare([put("a.jsonl", TEXTS)], tmp_path / "out", shard_tokens=200)
    shown = prepare_lib.inspect(str(tmp_path / "out"))
    for name, entry in shown["splits"].items():
        assert entry["tokens"] == manifest["splits"][name]["tokens"]
        assert entry["shards"] == len(manifest["splits"][name]["shards"])
        assert len(entry["excerpts"]) == 2 and set(entry["excerpts"]) <= set(TEXTS)
    assert shown["fingerprint"] == manifest["fingerprint"]
    refused(lambda: prepare_lib.inspect(str(tmp_path)), "holds no manifest.json")


def test_an_output_may_be_a_link(put, tmp_path, refused):
    path, there = put("a.jsonl", TEXTS), tmp_path / "there"
    link = lambda name, to: (tmp_path / name).symlink_to(to) or tmp_path / name
    there.mkdir()
    whole = prepare([path], link("to a folder", "there"))
    assert (tmp_path / "to a folder").is_symlink() and (there / "manifest.json").is_file()
    assert prepare([path], there) == prepare([path], tmp_path / "to a folder") == whole
    refused(lambda: prepare([path], tmp_path / "to a folder", tokenizer="bpe:257"), "bpe:257")
    prepare([path], link("to nothing", "deep/new"))
    assert (tmp_path / "deep/new/manifest.json").is_file()
    loop, file = link("to itself", "to itself"), link("to a file", path)
    refused(lambda: prepare([path], loop), "leads back to itself")
    refused(lambda: prepare([path], file), "is a file")


def test_a_tilde_is_the_home(put, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put("a.jsonl", TEXTS)
    put("v.txt", "held out")
    learnt = prepare(["~/a.jsonl"], "~/learnt", tokenizer="bpe:258", validation=("~/v.txt",))
    prepare(["~/*.jsonl"], "~/out", tokenizer="~/learnt", validation=("~/v.txt",))
    assert texts("~/out", "validation") == ["held out"] and (tmp_path / "out").is_dir()
    assert Reader("~/out").tokenizer_fingerprint == learnt["tokenizer"]["fingerprint"]
    assert prepare_lib.inspect("~/out")["fingerprint"]


def test_the_end_of_text_is_named_by_an_option(put, tmp_path):
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<stop>": 1}, []))
    library.save(str(tmp_path / "tokenizer.json"))
    how = {"tokenizer": str(tmp_path / "tokenizer.json"), "end_of_text": "<stop>"}
    path = put("a.jsonl", ["a" * (1 + i) for i in range(40)])
    manifest = prepare([path], tmp_path / "out", **how)
    assert manifest["tokenizer"]["end_of_text"] == 1
    assert Reader(str(tmp_path / "out")).tokenizer.end_of_text == 1
    assert prepare([path], tmp_path / "out", **how) == manifest


def test_it_says_what_it_does(put, tmp_path, monkeypatch):
    said = []

    @contextlib.contextmanager
    def bar(about, total, unit="bytes"):
        done = []
        yield done.append
        said.append((about, total, sum(done), unit))

    @contextlib.contextmanager
    def doing(about):
        said.append(about)
        yield

    monkeypatch.setattr(console, "bar", bar)
    monkeypatch.setattr(console, "doing", doing)
    path, size = put("a.jsonl", TEXTS), sum(map(len, TEXTS))
    raw = pathlib.Path(path).stat().st_size
    manifest = prepare([path], tmp_path / "out", tokenizer="bpe:260")
    tokens = 2 * sum(split["tokens"] for split in manifest["splits"].values())
    assert said == [
        ("reading", None, size, "bytes"),
        "learning bpe:260 from the training split of 40 documents, 0.0 MB",
        ("tokenising", raw, size, "bytes"),
        ("joining", tokens, tokens, "bytes"),
    ]


def test_a_text_in_many_parts_is_packed_as_it_is_in_one(put, tmp_path):
    rows = ["0123456789" * (1 + 200 * (i % 4)) for i in range(20)]
    whole = prepare([put("a.jsonl", rows)], tmp_path / "a", shard_tokens=5000)
    with patch.object(pieces, "PIECE", 100):
        cut = prepare([put("a.jsonl", rows)], tmp_path / "b", shard_tokens=5000)
    assert cut["splits"] == whole["splits"] and cut["fingerprint"] == whole["fingerprint"]
    assert len(cut["splits"]["train"]["shards"]) > 2


def test_an_excerpt_ends_with_a_whole_character(put, tmp_path):
    prepare([put("a.txt", "é日🙂x" * 99)], tmp_path / "out")
    for entry in prepare_lib.inspect(str(tmp_path / "out"))["splits"].values():
        assert all("\ufffd" not in excerpt[1:] for excerpt in entry["excerpts"])


def test_the_page_has_the_numbers_that_were_measured():
    found, page = result("prepare"), " ".join(page_of("data").split())
    for name in ("ratio", "ratio_of_processor_time"):
        middle, low, high = (f"{found[name][key]:.2f}" for key in ("median", "low", "high"))
        assert middle in page and f"{low} and {high}" in page
        assert found[name]["median"] >= 0.8
    for row in found["memory"]:
        seconds, peak = row["processor_seconds"], row["peak_megabytes"]
        assert f"| {row['megabytes']} MB | {seconds} s | {peak} MB |" in page
