import gc
import tracemalloc

import pytest

from recursia import settings
from recursia.data import prepare as prepare_lib
from recursia.data.windows import Windows
from recursia.errors import ConfigError
from tests.helpers import corpora
from tests.helpers.corpora import texts

PROSE = "".join(f"Line {i} says a few words.\n" for i in range(400))


def prepare(inputs, output, fraction):
    corpora.prepare(inputs, output, validation_fraction=fraction)
    return str(output)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
def test_a_single_document_is_split_at_its_end(put, tmp_path, name, fraction):
    path = put(name, [PROSE] if name.endswith("jsonl") else PROSE)
    folder = prepare([path], tmp_path / "out", fraction)
    (train,), (held_out,) = texts(folder, "train"), texts(folder, "validation")
    assert train + held_out == PROSE and train.endswith("\n")
    assert len(held_out) / len(PROSE) == pytest.approx(fraction, abs=0.005)


@pytest.mark.parametrize(
    "text, held_out",
    [
        ("one two three four five six", "five six"),  # no line ends: at a space
        ("一二三四五六七八九十", "八九十"),
        ("ab", "b"),
        ("  a  b\n", "b\n"),  # both hold more than white space
        (" \n\n a\n\n\n\n\nb \n\n\n ", "\nb \n\n\n "),
    ],
)
def test_it_is_cut_where_a_line_or_a_word_ends_if_one_does(put, tmp_path, text, held_out):
    folder = prepare([put("a.txt", text)], tmp_path / "out", 0.3)
    assert texts(folder, "train")[0] + texts(folder, "validation")[0] == text
    assert texts(folder, "validation") == [held_out]


@pytest.mark.parametrize("fraction", [1e-9, 0.01, 0.5, 0.999999])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_small_corpora_always_have_two_splits(put, tmp_path, count, fraction):
    documents = [f"document {i} " * (1 + i) for i in range(count)]
    folder = prepare([put("a.jsonl", documents)], tmp_path / "out", fraction)
    train, held_out = texts(folder, "train"), texts(folder, "validation")
    assert train and held_out and sorted(train + held_out) == sorted(documents)
    turned = prepare([put("b.jsonl", documents[::-1])], tmp_path / "turned", fraction)
    assert sorted(texts(turned, "validation")) == sorted(held_out)


def test_the_one_that_is_set_aside_is_as_large_as_was_asked_for(put, tmp_path):
    documents = [put("in/a.txt", "a" * 900), put("in/b.txt", "b" * 10), put("in/c.txt", "c" * 90)]
    assert texts(prepare(documents, tmp_path / "x", 1e-9), "validation") == ["b" * 10]
    assert texts(prepare(documents, tmp_path / "y", 0.0001), "validation") == ["b" * 10]
    assert texts(prepare(documents, tmp_path / "z", 1 - 1e-9), "train") == ["a" * 900]
    alike = [put("d.jsonl", ["the same"] * 3)]
    assert len(texts(prepare(alike, tmp_path / "alike", 0.1), "validation")) == 1


def test_of_a_few_large_documents_the_end_of_one_is_set_aside(put, tmp_path):
    books = [put(f"{name}.txt", PROSE.replace("Line", name) * 3) for name in ("One", "Two", "Six")]
    folder = prepare(books, tmp_path / "out", 0.05)
    (held_out,), train = texts(folder, "validation"), texts(folder, "train")
    assert len(held_out) == pytest.approx(0.05 * 3 * 3 * len(PROSE), rel=0.05)
    whole = [open(book).read() for book in books]
    assert sum(text in whole for text in train) == 2
    assert any(text + held_out in whole for text in train)
    turned = prepare(books[::-1], tmp_path / "turned", 0.05)
    assert len(texts(turned, "train")) == 3 and len(texts(turned, "validation")) == 1


@pytest.mark.parametrize("content", [PROSE, ["one", "two"]], ids=["one document", "two"])
def test_a_fraction_of_0_makes_no_validation_split(put, tmp_path, refused, content):
    path = put("a.txt" if isinstance(content, str) else "a.jsonl", content)
    folder = prepare([path], tmp_path / "out", 0.0)
    assert "".join(texts(folder, "train")) == "".join(content)
    shown = prepare_lib.inspect(str(tmp_path / "out"))
    assert list(shown["splits"]) == ["train"] and all(shown["splits"]["train"]["excerpts"])
    refused(lambda: Windows(folder, "validation", 4), "only train", "validation_fraction")


def test_a_document_of_one_character_cannot_be_split_and_the_advice_works(put, tmp_path, refused):
    path = put("a.txt", " a \n")
    call = lambda: prepare([path], tmp_path / "out", 0.1)
    refused(call, "1 characters", "0.1", "0 for none")
    assert texts(prepare([path], tmp_path / "out", 0.0), "train") == [" a \n"]


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan"), float("inf")])
def test_a_fraction_out_of_range_is_refused_alike_by_both(fraction):
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        prepare_lib.Options(validation_fraction=fraction)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        settings.Data(text=("a.txt",), validation_fraction=fraction)
    assert settings.Data(text=("a.txt",), validation_fraction=0.0).validation_fraction == 0


def test_memory_does_not_go_with_the_size_of_a_text_file(put, tmp_path):
    def peak(lines, run=0):
        path = put(f"{lines}.txt", "a line of the text\n" * lines)
        gc.set_threshold(700, 10, 10)  # what nobody holds is not counted for long
        tracemalloc.start()
        try:
            prepare([path], tmp_path / f"{lines}-{run}", 0.01)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            gc.set_threshold(*seldom)

    seldom = gc.get_threshold()
    # 15 MB and 4 MB; what threads of other tests allocate is counted, though seldom twice.
    assert min(peak(800_000, run) for run in range(2)) < 1.1 * peak(200_000)
