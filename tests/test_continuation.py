"""A continuation is the text of its tokens up to the first stop, wherever tokens have borders."""

import itertools

import numpy as np
import pytest

from recursia.data import bpe
from recursia.data.vocabulary import ByteTokenizer
from recursia.generate.continuation import Continuation, Stops

TEXT = "the cat, the h\u00e9at and the \u732b\u732b\u732b; the cat sat. " * 2
TOKENIZERS = {"byte": ByteTokenizer(), "bpe": bpe.learn([TEXT], 270, "bpe:270")}
STOPS = [
    ("cat",),
    ("the", "he"),
    ("\u00e9",),
    ("\u732b\u732b\u732b;",),
    (" and", ".", "; "),
    ("and the \u732b", "d"),  # the second lies in the first
    ("the cat sat. the cow", "sat"),  # begins before the second, and does not come true
    ("nowhere",),
    (),
]


def continued(tokenizer, ids, stops, count=1000):
    """Returns a continuation by some ids, and the pieces of its text as they became certain."""
    text, pieces = Continuation(tokenizer, tokenizer.encode("So "), Stops(stops), count), []
    for token in (*ids, None):
        if text.is_over:
            break
        before = text.text
        text.take(token)
        assert text.text.startswith(before)
        pieces.append(text.text.removeprefix(before))
    return text, pieces


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("stops", STOPS, ids=repr)
def test_a_text_is_cut_at_the_first_stop(tokenizer, stops):
    """Nothing of a stop is shown, and no half of a character."""
    text, pieces = continued(tokenizer, ids := tokenizer.encode(TEXT), stops)
    whole = Stops(stops).cut(TEXT)
    assert text.text == "".join(pieces) == whole
    assert "\ufffd" not in text.text
    has_stopped = whole != TEXT
    assert text.finish_reason == ("stop" if has_stopped else "end_of_text")
    assert text.tokens == ids[: len(text.tokens)]
    if has_stopped and len(stops) == 1:  # not a token later
        assert stops[0] in tokenizer.decode(text.tokens)
        assert stops[0] not in tokenizer.decode(text.tokens[:-1])


def test_borders_of_tokens_change_nothing():
    """All texts of two letters, all ways of cutting them in two tokens."""
    tokenizer = TOKENIZERS["byte"]
    for letters in itertools.product("ab", repeat=6):
        text = "".join(letters)
        for stops in (("aba", "b"), ("bb",), ("abab", "ba"), ("aab", "abb", "bba")):
            assert continued(tokenizer, text.encode(), stops)[0].text == Stops(stops).cut(text)
            for at in range(7):
                found = Stops(stops)
                certain = found.certain(text[:at])
                start = found.start(text[:at])
                if start is not None and start <= certain:
                    assert found.start(text) == start
                else:  # what comes later begins no stop in what is certain
                    first = found.start(text)
                    assert first is None or first >= certain


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_any_tokens_are_shown_as_they_are_printed(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(0, tokenizer.vocab_size, 12).tolist()
        count = int(rng.integers(1, 14))
        text, pieces = continued(tokenizer, ids, ("e",), count)
        kept = ids[:count]
        whole = tokenizer.continuation(tokenizer.encode("So "), kept)
        assert text.text == "".join(pieces) == Stops(("e",)).cut(whole)
        if "e" not in whole:
            assert text.finish_reason == ("length" if count <= 12 else "end_of_text")
            assert text.tokens == kept
