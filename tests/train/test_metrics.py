"""Rows and samples that are written are read again, whatever characters are in them."""

import json

import pytest

from recursia import jsonlines
from recursia.train.metrics import Writer

TEXTS = [
    "a\u2028b",
    "a\u2029b",
    "a\x85b",
    "a\x0bb\x0c",
    "a\x1c\x1d\x1eb",
    'a\nb"\\',
    "a\r\nb",
    "é漢🙂",
]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_a_sample_survives_a_resume(tmp_path, text):
    writer = Writer(tmp_path, 0, tensorboard=False)
    for step in (1, 2):
        writer.sample(step, text, text + text)
        writer.write({"step": step, "loss": 0.1})
    writer.close()
    before = (tmp_path / "samples.jsonl").read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()
    assert before[0].count(b"\n") == 2
    Writer(tmp_path, 2, tensorboard=False).close()
    assert before == tuple((tmp_path / f"{n}.jsonl").read_bytes() for n in ("samples", "metrics"))
    Writer(tmp_path, 1, tensorboard=False).close()
    (row,) = jsonlines.values(tmp_path / "samples.jsonl")
    assert row == {"step": 1, "prompt": text, "text": text + text}


def test_what_is_no_row_is_dropped(tmp_path):
    whole = jsonlines.line({"step": 1, "loss": 0.5})
    broken = ['{"step": "1"}\n', "[1]\n", "\n", '{"loss": 1}\n', "[" * 100_000 + "\n", '{"step": 1']
    (tmp_path / "metrics.jsonl").write_text("".join([broken[0], whole, *broken[1:]]))
    Writer(tmp_path, 5, tensorboard=False).close()
    assert (tmp_path / "metrics.jsonl").read_text() == whole
    assert json.loads(whole)["loss"] == 0.5
