import gzip
import os

import pytest
import zstandard

from recursia.data import named, sources
from tests.helpers.corpora import read

expand = lambda paths: tuple(each.path for each in named.expand(paths))
TEXTS = ["one", "zwei ü", "三 🙂\nline", ""]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_compressed_equals_plain(put, packed):
    assert read(put("a.jsonl" + packed, TEXTS)) == TEXTS
    assert read(put("a.txt" + packed, "one\r\n\ntwo ü")) == ["one\r\n\ntwo ü"]


def test_frames_one_after_the_other_are_one_file(put):
    compress = zstandard.ZstdCompressor().compress
    both = lambda pack: pack(b'{"text": "a"}\n{"te') + pack(b'xt": "b"}\n')
    assert read(put("z.jsonl.zst", both(compress))) == ["a", "b"]
    assert read(put("g.jsonl.gz", both(gzip.compress))) == ["a", "b"]


def test_the_text_field_is_the_one_asked_for(put):
    path = put("a.jsonl", '{"text": "no", "body": "yes"}\n')
    (document,) = named.of(path).documents(on_error="stop", text_field="body")
    assert document.text == "yes"


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"text": "cut', "bad JSON"),
        (b'["text"]', "list"),
        (b'{"txt": "a"}', "no field 'text'"),
        (b'{"text": 7}', "int"),
        (b'{"text": "\xff"}', "invalid UTF-8 at byte 10"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "bad JSON"),
    ],
)
def test_a_broken_line_is_named_by_its_number_or_skipped_and_counted(
    put, refused, capsys, line, reason
):
    path = put("a.jsonl", b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}\n' + line)
    refused(lambda: read(path), f"{path}:3: ", reason, "on_error=skip")
    assert read(path, "skip") == ["a", "b"]
    assert f"skipped 2 broken, the first at {path}:3\n" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_one_line(put, refused, tmp_path):
    whole = {"gz": gzip.compress(b"text" * 999), "zst": zstandard.compress(b"text" * 999)}
    for ending, raw in whole.items():
        for name, content in (("cut", raw[:-6]), ("bad", b"nonsense")):
            path = put(f"{name}.txt.{ending}", content)
            refused(lambda path=path: read(path), path, "cannot be read")
    for name in ("empty.txt", "empty.jsonl", "empty.jsonl.gz", "empty.txt.zst"):
        path = put(name, "")
        refused(lambda path=path: read(path), path, "0 documents")
    refused(lambda: read(str(tmp_path / "none.txt")), "none.txt", "does not exist")
    (tmp_path / "folder.txt").mkdir()
    refused(lambda: read(str(tmp_path / "folder.txt")), "is a folder")
    path = put("latin.txt", b"caf\xe9")
    refused(lambda: read(path), "latin.txt: invalid UTF-8 at byte 3")
    refused(lambda: read(path, "skip"), "0 documents (1 broken skipped)")
    refused(lambda: read("a.csv"), ".jsonl.zst")


def test_expand_sorts_folders_and_patterns_and_keeps_the_order_given(put, tmp_path):
    b, a = put("in/b.txt", "b"), put("in/a.jsonl.gz", ["a"])
    put("in/notes.md", "no")
    deep = put("in/deep/c.txt", "c")
    other = put("z.txt", "z")
    folder = str(tmp_path / "in")
    assert expand([other, folder]) == (other, a, b)
    assert expand([folder + "/**/*.txt"]) == (b, deep)
    brackets = put("x[1].txt", "x")
    assert expand([brackets]) == (brackets,)


def test_expand_refuses_what_names_nothing_or_twice(put, refused, tmp_path):
    path = put("in/a.txt", "a")
    (tmp_path / "bare").mkdir()
    refused(lambda: expand([str(tmp_path / "no.txt")]), "no.txt", "does not exist")
    refused(lambda: expand([str(tmp_path / "*.jsonl")]), "0 files match")
    refused(lambda: expand([str(tmp_path / "bare")]), "0 files in this folder", ".jsonl.zst")
    refused(lambda: expand([path, str(tmp_path / "in")]), path, "named 2 times")
    refused(lambda: expand(["bundled:test"]), "bundled:train, bundled:validation")


def test_the_bundled_corpus_is_there():
    train, validation = expand(["bundled:train"]), expand(["bundled:validation"])
    assert len(read(*train)) == 10 and len(read(*validation)) == 2


def test_a_kind_is_one_module(put, tmp_path, monkeypatch):
    put(
        "kinds/shouted.py",
        "from recursia.data.source import Source, in_memory\n"
        "class Shouted(Source):\n"
        "    SUFFIXES = ('.up',)\n"
        "    def records(self, text_field):\n"
        "        yield in_memory(open(self.path).read().upper())\n",
    )
    folders = [*sources.__path__, str(tmp_path / "kinds")]
    with monkeypatch.context() as patch:
        patch.setattr(sources, "__path__", folders)
        named.kinds.cache_clear()
        assert read(*expand([os.path.dirname(put("in/a.UP", "hear"))])) == ["HEAR"]
    named.kinds.cache_clear()
    assert ".up" not in named.kinds()
