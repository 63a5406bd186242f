import json
import random

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from recursia.data import pieces as pieces_lib
from recursia.data.bpe import BPETokenizer
from recursia.data.tokenizer import ByteTokenizer, from_spec

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BLOCK = "\N{LOWER ONE EIGHTH BLOCK}"
# Contractions, numbers in threes, and punctuation that takes the letters or line ends after it.
MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def random_text(seed, size):
    draw = random.Random(seed)
    kinds = [
        lambda: draw.choice(
            ["the", "cat's", "don't", "naïve", "e\u0301", "ﬁ", "日本語", "🙂👩‍👩‍👧"]
        ),
        lambda: draw.choice([" ", "  ", "\n", "\r\n", "\t", " \n \n", "\u3000", "\x85", "\u2028"]),
        lambda: str(draw.randrange(10 ** draw.randrange(1, 12))),
        lambda: draw.choice(
            [".", "...", "!?", "—", "'", "。", "_", "<|endoftext|>", "\x00", BLOCK]
        ),
        lambda: " " * draw.choice([1, 1, 1, 1, 30]),
    ]
    found = ""
    while len(found) < size:
        found += "".join(draw.choice(kinds)() for _ in range(100))
    return found


def learnt(pre_tokenizer, normalizer=None, added=(), decoder=None, **model):
    library = tokenizers.Tokenizer(models.BPE(**model))
    if pre_tokenizer is not None:
        library.pre_tokenizer = pre_tokenizer
    library.normalizer = normalizer or normalizers.Sequence([])
    library.decoder = decoder or decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", *(("<unk>",) if model else ())],
        initial_alphabet=[] if model else ALPHABET,
        show_progress=False,
    )
    library.train_from_iterator([random_text(99, 20_000)], trainer)
    library.add_tokens(list(added))
    return BPETokenizer(library, "here")


def byte_level(**how):
    return pre_tokenizers.ByteLevel(**({"add_prefix_space": False} | how))


TOKENIZERS = {
    "byte": ByteTokenizer,
    "byte-level": lambda: learnt(byte_level()),
    "a space is put first": lambda: learnt(byte_level(add_prefix_space=True)),
    "NFC and tokens of spaces": lambda: learnt(
        byte_level(), normalizers.NFC(), added=[" " * n for n in (8, 4, 2)]
    ),
    "numbers in threes": lambda: learnt(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(MODERN), "isolated"), byte_level(use_regex=False)]
        )
    ),
    "metaspace": lambda: learnt(
        pre_tokenizers.Metaspace(), decoder=decoders.Metaspace(), unk_token="<unk>"
    ),
}


def without_words():
    """As SentencePiece has it: no pre-tokenizer, a space before the text, no token across one."""
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend(BLOCK), normalizers.Replace(" ", BLOCK)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["</s>", "<unk>"], show_progress=False
    )
    library.train_from_iterator([random_text(99, 20_000)], trainer)
    raw = json.loads(library.to_str()) | {"pre_tokenizer": None}
    return BPETokenizer(tokenizers.Tokenizer.from_str(json.dumps(raw)), "here")


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def whole(tokenizer, text):
    return tokenizer.encode_batch([text])[0].tolist()


def test_ids_of_the_pieces_are_those_of_the_text(tokenizer):
    for seed in range(3):
        text = random_text(seed, 60_000)
        pieces = list(tokenizer.pieces([text]))
        assert "".join(pieces) == text and len(pieces) >= 3
        assert tokenizer.encode(text) == whole(tokenizer, text)


def test_a_space_that_the_tokenizer_puts_first_is_not_there_twice():
    tokenizer = without_words()
    for seed in range(3):
        text = random_text(seed, 60_000)
        pieces = list(tokenizer.pieces([text]))
        assert " ".join(pieces) == text and len(pieces) >= 3
        assert tokenizer.encode(text) == whole(tokenizer, text)


def test_pieces_do_not_depend_on_how_the_text_comes():
    tokenizer, text = TOKENIZERS["byte-level"](), random_text(7, 60_000)
    for size in (1000, 20_011, len(text)):
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        assert list(tokenizer.pieces(parts)) == list(tokenizer.pieces([text]))
    assert list(tokenizer.pieces([])) == [] == list(tokenizer.pieces([""]))


DENSE = {
    "digits": "0123456789" * 4000,  # cut in threes, counted from the start
    "letters of which each is a word": "日本語" * 14_000,
    "words of a script without spaces": "北京市。上海市。" * 5000,
    "lines": "a\n" * 20_000,
}


@pytest.mark.parametrize("text", DENSE.values(), ids=DENSE)
def test_a_text_without_spaces_is_cut_where_its_words_end(text):
    library = tokenizers.Tokenizer(models.BPE())
    han = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\p{Han}"), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([han, byte_level()])
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=ALPHABET, show_progress=False
    )
    library.train_from_iterator([text[:999]], trainer)
    tokenizer = BPETokenizer(library, "here")
    assert tokenizer.encode(text) == whole(tokenizer, text)


LONG = {
    "one word of 3 MB": "".join(random.Random(0).choices("abcdefgh", k=3_000_000)),
    "spaces": " " * 100_000,
    "line ends": "\n" * 100_000,
    "letters": "好" * 100_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_word_without_an_end_is_cut_all_the_same(text):
    tokenizer = from_spec("bpe:257", lambda: iter(["a"]))
    pieces = list(tokenizer.pieces([text]))
    most = pieces_lib.PIECE + pieces_lib.LOOK
    assert "".join(pieces) == text and max(map(len, pieces)) <= most
    assert sum(map(len, tokenizer.encode_batch(pieces))) == len(text.encode())


def test_what_is_learnt_from_is_cut_too(monkeypatch, refused):
    learn = lambda: from_spec("bpe:262", lambda: iter(["ab" * 1000]))
    assert learn().vocab_size == 262  # ab, abab, and twice and four times as long
    monkeypatch.setattr(pieces_lib, "PIECE", 4)
    monkeypatch.setattr(pieces_lib, "LOOK", 2)
    refused(learn, "259 of 262")


def test_a_document_in_parts_teaches_what_it_teaches_whole():
    text = random_text(5, 50_000)
    parts = [text[at : at + 777] for at in range(0, len(text), 777)]
    first, second = (from_spec("bpe:400", lambda d=d: iter([d])) for d in (text, parts))
    assert first.fingerprint == second.fingerprint
