import random

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from recursia.data.bpe import BPETokenizer
from recursia.data.tokenizer import ByteTokenizer, from_spec

BLOCK = "\N{LOWER ONE EIGHTH BLOCK}"
WORDS = [f"{BLOCK}The", f"{BLOCK}cat", "s", BLOCK, "é", "."]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def of_words(names, **how):
    vocabulary = {name: i for i, name in enumerate(["<unk>", "</s>", *names])}
    how = {"vocab": vocabulary, "unk_token": "<unk>"} | how
    library = tokenizers.Tokenizer(models.BPE(merges=[], **how))
    library.add_special_tokens(["<unk>", "</s>"])
    return library


def metaspace():
    library = of_words(WORDS)
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return BPETokenizer(library, "here")


def byte_fallback():
    """As SentencePiece has it: no pre-tokenizer, bytes for what is in no token."""
    library = of_words([*BYTES, *WORDS], byte_fallback=True)
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend(BLOCK), normalizers.Replace(" ", BLOCK)]
    )
    parts = [decoders.Replace(BLOCK, " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return BPETokenizer(library, "here")


def word_piece():
    vocabulary = {name: i for i, name in enumerate(["[UNK]", "[EOS]", "the", "cat", "##s", "."])}
    library = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    return BPETokenizer(library, "here")


MAKE = {
    "byte": ByteTokenizer,
    "byte-level": lambda: from_spec("bpe:280", lambda: iter(["日本 the cat's 🙂 naïve " * 9])),
    "metaspace": metaspace,
    "bytes of a fallback": byte_fallback,
    "word pieces": word_piece,
}


@pytest.fixture(params=MAKE)
def tokenizer(request):
    return MAKE[request.param]()


def test_any_ids_continue_any_others_and_a_stream_of_them_adds_up(tokenizer):
    draw = random.Random(0)
    for _ in range(200):
        # Ids beyond the vocabulary are of rows of the embedding that no token has.
        ids = [draw.randrange(tokenizer.vocab_size + 3) for _ in range(draw.randrange(60))]
        if draw.random() < 0.5:  # text, whose characters a place may cut in two
            ids = tokenizer.encode("The cats 日本🙂 é naïve the cat. " * 2)
        place = draw.randrange(len(ids) + 1)
        before, drawn = ids[:place], ids[place:]
        added = tokenizer.continuation(before, drawn)
        assert "".join(tokenizer.stream(before, drawn)) == added
        whole, first = tokenizer.decode(ids), tokenizer.decode(before)
        assert whole.endswith(added)
        kept = whole[: len(whole) - len(added)]
        ends = (before[: place - k] for k in range(4))  # of a character that is not whole
        assert any(tokenizer.decode(end).startswith(kept) for end in ends)
        if whole.startswith(first):
            assert first + added == whole


def test_a_word_keeps_the_space_before_it():
    tokenizer = metaspace()
    the, cat, s = range(2, 5)
    assert tokenizer.continuation([the], [the, cat, s]) == " The cats"
    assert tokenizer.continuation([], [the, cat]) == "The cat"
    assert list(tokenizer.stream([the], [cat, s, the])) == [" cat", "s", " The"]
    tokenizer = word_piece()
    the, cat, s = (tokenizer.encode(word)[-1] for word in ("the", "cat", "cats"))
    assert tokenizer.continuation([the], [cat, s]) == " cats"
    assert tokenizer.continuation([the, cat], [s]) == "s"


@pytest.mark.parametrize("name", ["byte", "byte-level", "bytes of a fallback"])
def test_a_character_comes_whole_with_its_last_byte(name):
    tokenizer = MAKE[name]()
    before, character = tokenizer.encode("a"), tokenizer.encode("aꙮ")[-3:]
    after = tokenizer.encode("ax")[-1:]
    assert tokenizer.decode(character) == "ꙮ"
    for split in range(3):
        begun, drawn = [*before, *character[:split]], [*character[split:], *after]
        assert tokenizer.continuation(begun, drawn) == "ꙮx"
        pieces = list(tokenizer.stream(begun, iter(drawn)))
        assert "".join(pieces) == "ꙮx" and "\ufffd" not in "".join(pieces)
    # one that never comes whole is told at the end
    assert set("".join(tokenizer.stream(before, character[:2]))) == {"\ufffd"}


def test_a_stream_gives_text_as_it_comes():
    tokenizer, seen = ByteTokenizer(), []

    def ids():
        for i in "aé".encode():
            seen.append(i)
            yield i

    stream = tokenizer.stream([], ids())
    assert next(stream) == "a" and len(seen) == 1
    assert next(stream) == "é" and len(seen) == 3


def test_many_ids_are_decoded_as_they_are_at_once(tokenizer):
    draw = random.Random(1)
    ids = [draw.randrange(tokenizer.vocab_size) for _ in range(9000)]
    assert "".join(tokenizer.decoded(np.array(ids))) == tokenizer.decode(ids)
