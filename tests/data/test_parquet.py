import sys

import pyarrow
import pytest
from pyarrow import parquet

from recursia.data import named, prepare
from tests.helpers import corpora
from tests.helpers.corpora import read

TEXTS = [f"document {i}, zwei ü 三 🙂\n" + "words " * (i % 7) for i in range(40)]


@pytest.fixture
def table(tmp_path):
    """Writes a table whose column `text` holds the texts given."""

    def write(name, texts, **how):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        columns = {"number": list(range(len(texts))), "text": texts}
        parquet.write_table(pyarrow.table(columns), tmp_path / name, **how)
        return str(tmp_path / name)

    return write


def prepared(inputs, output):
    return corpora.prepare(inputs, output, tokenizer="bpe:280", validation_fraction=0.2)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
def test_compressed_columns_equal_plain(table, compression):
    path = table("a.parquet", [*TEXTS, ""], compression=compression, row_group_size=7)
    assert read(path) == [*TEXTS, ""]


def test_the_same_texts_give_the_same_tokens_whatever_holds_them(put, table, tmp_path):
    for i, text in enumerate(TEXTS):
        put(f"text/{i:02}.txt", text)
    put("lines/a.jsonl.zst", TEXTS)
    table("tables/a.parquet", TEXTS[:25], row_group_size=4)
    table("tables/b.PARQUET", TEXTS[25:], use_dictionary=False)
    made = [
        prepared([str(tmp_path / name)], tmp_path / f"of {name}")
        for name in ("text", "lines", "tables")
    ]
    assert len({manifest["fingerprint"] for manifest in made}) == 1
    assert [row["name"] for row in made[2]["sources"]] == ["a.parquet", "b.PARQUET"]


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary"])
def test_every_way_to_hold_text_is_text(table, kind):
    column = pyarrow.array(["a", "b", "a"])
    is_plain = kind != "dictionary"
    column = column.cast(getattr(pyarrow, kind)()) if is_plain else column.dictionary_encode()
    assert read(table("a.parquet", column)) == ["a", "b", "a"]


def test_row_groups_are_read_one_at_a_time_and_no_other_column(table, monkeypatch):
    path, asked = table("a.parquet", TEXTS, row_group_size=10), []
    batches = parquet.ParquetFile.iter_batches

    def counted(self, batch_size, row_groups, columns, **how):
        asked.append((row_groups, columns))
        return batches(self, batch_size, row_groups, columns, **how)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", counted)
    documents = named.of(path).documents(on_error="stop")
    for number, text in enumerate(TEXTS):
        assert next(documents).text == text
        assert asked == [([group], ["text"]) for group in range(number // 10 + 1)]


def test_nulls_and_broken_texts_are_named_by_their_row_or_skipped(table, refused, capsys):
    path = table("a.parquet", ["a", "b", None, "c", None], row_group_size=2)
    refused(lambda: read(path), f"{path}:3: null", "on_error=skip")
    assert read(path, "skip") == ["a", "b", "c"]
    assert f"skipped 2 broken, the first at {path}:3\n" in capsys.readouterr().err
    offsets = pyarrow.array([0, 2, 4], pyarrow.int32()).buffers()[1]
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"okc\xff")]
    )
    path = table("b.parquet", broken)
    refused(lambda: read(path), f"{path}:2: invalid UTF-8 at byte 1")
    assert read(path, "skip") == ["ok"]


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_table_without_texts_is_one_line(put, table, tmp_path, refused, on_error):
    path = table("a.parquet", ["a"])
    assert read(path, on_error) == ["a"]
    bad = lambda path, *parts, **how: refused(lambda: read(path, on_error, **how), path, *parts)
    bad(path, "0 columns are named 'body'", "['number', 'text']", text_field="body")
    bad(path, "column 'number' is int64, not text", text_field="number")
    bad(table("bytes.parquet", [b"a"]), "column 'text' is binary")
    bad(table("deep.parquet", [{"text": "a"}]), "column 'text' is struct")
    bad(table("none.parquet", pyarrow.array([], pyarrow.string())), "0 documents (it is empty)")
    whole = open(table("whole.parquet", ["abc" * 999], compression="gzip"), "rb").read()
    for name, raw in (
        ("cut", whole[:-5]),
        ("empty", b""),
        ("bad", b"xx".join(whole.rsplit(b"\x1f\x8b", 1))),  # of a page's gzip
    ):
        bad(put(f"{name}.parquet", raw), "cannot be read", "fetch the file again")
    (tmp_path / "folder.parquet").mkdir()
    bad(str(tmp_path / "folder.parquet"), "cannot be read")


def test_without_pyarrow_it_says_what_to_install_before_anything_is_read(
    table, tmp_path, refused, monkeypatch
):
    path = table("a.parquet", TEXTS)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused(lambda: prepared([path], tmp_path / "out"), path, "pip install 'recursia[parquet]'")


def test_a_table_is_prepared_once_and_another_refused(table, tmp_path, refused):
    path, out = table("a.parquet", TEXTS), tmp_path / "out"
    first, shown = prepared([path], out), prepare.inspect(str(out))
    assert shown["splits"]["train"]["excerpts"][0] in TEXTS[0]
    assert prepared([path], out) == first and prepare.inspect(str(out)) == shown
    table("a.parquet", TEXTS[1:])
    refused(lambda: prepared([path], out), "other sources (a.parquet)")
