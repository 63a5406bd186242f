"""N-gram models are the ones their formulas say, and distributions."""

import gzip
import lzma
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recursia.data.packing import Reader, Writer
from recursia.data.tokenizer import ByteTokenizer
from recursia.evaluate import baselines

ids = lambda *values: np.array(values, np.int64)


def test_the_bits_of_a_text_are_those_of_the_formula():
    # "0 1 0 2" of 4 tokens. Unigram: (count + 1) / (4 + 4).
    counted, scored = ids(0, 1, 0, 2), ids(0, 1, 1, 3, 0)
    one = {0: 3 / 8, 1: 2 / 8, 2: 2 / 8, 3: 1 / 8}
    unigram = -sum(math.log2(one[i]) for i in (0, 1, 1, 3, 0))
    # After 0: 1 and 2, once each, so 2 counts and 2 followers; after 1: 0 once; after 3: nothing.
    after = [
        (1 + 2 * one[1]) / (2 + 2),  # 0 1, seen
        (0 + 1 * one[1]) / (1 + 1),  # 1 1, not seen
        (0 + 1 * one[3]) / (1 + 1),  # 1 3, not seen
        one[0],  # 3 0: nothing is known of 3
    ]
    bigram = -math.log2(one[0]) - sum(map(math.log2, after))
    assert baselines.ngram_bits([counted], scored, 4) == pytest.approx((unigram, bigram))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(0, 3))
def test_the_chances_of_all_continuations_sum_to_one(counted, before):
    bits = [baselines.ngram_bits([np.array(counted)], ids(before, token), 4) for token in range(4)]
    alone = baselines.ngram_bits([np.array(counted)], ids(before), 4)
    for model in (0, 1):
        assert sum(2.0 ** (alone[model] - b[model]) for b in bits) == pytest.approx(1)


def test_a_bigram_knows_more_than_a_unigram_of_a_text_that_repeats():
    text = np.tile(ids(0, 1, 2), 50)
    unigram, bigram = baselines.ngram_bits([text], text, 4)
    assert bigram < 0.2 * unigram


def test_bits_do_not_depend_on_how_the_ids_are_parted(monkeypatch):
    draw = np.random.default_rng(0)
    counted, scored = draw.integers(0, 9, 500), draw.integers(0, 9, 300)
    whole = baselines.ngram_bits([counted], scored, 9)
    monkeypatch.setattr(baselines, "_BLOCK", 7)
    for places in ([], [1, 250], [0, 13, 13, 499]):
        parts = np.split(counted.astype(np.uint16), places)
        assert baselines.ngram_bits(parts, scored, 9) == pytest.approx(whole)


def test_bits_are_per_byte_of_the_scored_text(tmp_path):
    tokenizer, train, checked = ByteTokenizer(), "the red fox " * 20, "the red dög " * 9
    with Writer(str(tmp_path / "data"), tokenizer, 1 << 20) as writer:
        for split, text in (("train", train), ("validation", checked)):
            writer.add(split, tokenizer.encode(text), len(text.encode()))
        writer.finish({"sources": [], "options": {}})
    directory = (str(tmp_path / "data"),)
    found = baselines.scores(directory, directory, tokenizer, 0)
    size = len(checked.encode())
    reader = Reader(directory[0])
    tokens = [np.concatenate(reader.tokens(s)).astype(np.int64) for s in ("train", "validation")]
    unigram, bigram = baselines.ngram_bits([tokens[0]], tokens[1], tokenizer.vocab_size)
    assert found == pytest.approx(
        {
            "unigram": unigram / size,
            "bigram": bigram / size,
            "gzip -9": 8 * len(gzip.compress(checked.encode(), 9)) / size,
            "xz -9": 8 * len(lzma.compress(checked.encode(), preset=9)) / size,
        }
    )
    part = baselines.scores(directory, directory, tokenizer, 12)
    assert part["gzip -9"] > found["gzip -9"]
