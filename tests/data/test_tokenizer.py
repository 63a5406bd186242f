import gzip
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from recursia.data.tokenizer import ByteTokenizer, from_spec, load
from recursia.errors import ConfigError

TRAINING = ["the cat sat on the mat, the hat and the other cats " * 8, "naïve façade — 日本語 🙂"]
HARD = [
    "",
    " ",
    "the cat\r\n\tsat  on   mats",
    "naïve e\u0301 日本語 🙂👩‍👩‍👧 \x00\x7f",
    "a<|endoftext|>b </s> <eos>",
]


def gpt2_files(folder, packed=""):
    """A vocabulary in GPT-2's two files: bytes, th, the, and the end of text, which is last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "th", "the", "<|endoftext|>"])}
    folder.mkdir()
    pack = gzip.compress if packed else lambda raw: raw
    (folder / f"encoder.json{packed}").write_bytes(pack(json.dumps(vocabulary).encode()))
    (folder / f"vocab.bpe{packed}").write_bytes(pack(b"#version: 0.2\nt h\nth e\n"))
    return str(folder)


@pytest.fixture(params=["byte", "bpe:300", "gpt2"])
def tokenizer(request, tmp_path):
    spec = gpt2_files(tmp_path / "gpt2") if request.param == "gpt2" else request.param
    return from_spec(spec, lambda: iter(TRAINING))


def test_decoding_gives_the_text_back(tokenizer):
    for text in HARD + TRAINING:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [ids.tolist() for ids in tokenizer.encode_batch(HARD)] == [
        tokenizer.encode(text) for text in HARD
    ]


def test_token_bytes_sum_to_the_text(tokenizer):
    sizes = tokenizer.token_bytes()
    assert sizes.dtype == np.int32 and sizes.shape == (tokenizer.vocab_size,)
    for text in HARD + TRAINING:
        assert sizes[tokenizer.encode(text)].sum() == len(text.encode())
    assert sizes[tokenizer.end_of_text] == 0 and np.sum(sizes == 0) == 1


def test_text_never_encodes_to_the_end_of_text(tokenizer):
    assert tokenizer.end_of_text not in tokenizer.encode("<|endoftext|> <|endoftext|>")
    assert tokenizer.decode([tokenizer.end_of_text, *tokenizer.encode("a")]) == "a"


def test_broken_utf8_decodes_to_the_replacement_character(tokenizer):
    first = [i for i, n in enumerate(tokenizer.token_bytes()) if n == 1]
    parts = [i for i in first if tokenizer.decode([i]) == "\ufffd"]
    assert len(parts) == 128


def test_load_gives_what_save_wrote(tokenizer, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    tokenizer.save(str(folder))
    for again in (load(str(folder)), from_spec(str(folder), lambda: iter(()))):
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.kind, again.end_of_text) == (tokenizer.kind, tokenizer.end_of_text)
        assert all(again.encode(text) == tokenizer.encode(text) for text in HARD)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["kind"] == tokenizer.kind and config["end_of_text"] == tokenizer.end_of_text


def test_training_is_deterministic_and_gives_the_size_asked_for():
    first, second = (from_spec("bpe:290", lambda: iter(TRAINING)) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == 290 and ByteTokenizer().vocab_size == 257
    assert first.fingerprint != from_spec("bpe:291", lambda: iter(TRAINING)).fingerprint


def test_compressed_files_equal_plain(tmp_path):
    plain = from_spec(gpt2_files(tmp_path / "plain"), lambda: iter(()))
    packed = from_spec(gpt2_files(tmp_path / "packed", ".gz"), lambda: iter(()))
    assert plain.fingerprint == packed.fingerprint
    assert plain.encode("the th t")[0] == 257 and plain.end_of_text == 258
    (tmp_path / "saved").mkdir()
    plain.save(str(tmp_path / "saved"))
    raw = (tmp_path / "saved/tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json.gz").write_bytes(gzip.compress(raw))
    spec = str(tmp_path / "tokenizer.json.gz")
    assert from_spec(spec, lambda: iter(())).fingerprint == plain.fingerprint


def test_special_and_padding_rules_of_a_file_do_not_reach_the_ids(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.normalizer = normalizers.NFC()
    library.add_special_tokens(["</s>", "<pad>"])
    library.add_tokens(["    "])
    library.enable_truncation(2)
    library.enable_padding(length=9)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 256)]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    loaded = from_spec(str(tmp_path), lambda: iter(()))
    assert loaded.end_of_text == 256
    assert len(loaded.encode("abcde")) == 5
    assert loaded.token_bytes()[256:].tolist() == [0, 0, 4]
    decomposed = "e\u0301"  # 3 bytes, which the normalizer makes 2
    assert loaded.token_bytes()[loaded.encode(decomposed)].sum() == 2


def test_sentencepiece_bytes_are_those_of_the_characters(tmp_path):
    vocabulary = {"<unk>": 0, "</s>": 1, "<0x0A>": 2, "\u2581the": 3, "é": 4, "\u2581": 5}
    model = models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    library = tokenizers.Tokenizer(model)
    library.add_special_tokens(["<unk>", "</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    loaded = from_spec(str(tmp_path / "tokenizer.json"), lambda: iter(()))
    assert loaded.token_bytes().tolist() == [0, 0, 1, 4, 2, 1]


def test_wrong_specs_are_one_line(refused, tmp_path):
    make = lambda spec: lambda: from_spec(str(spec), lambda: iter(["a b"]))
    for spec in ("bpe:256", "bpe:many", "bpe:"):
        refused(make(spec), spec, "257", kind=ConfigError, code=2)
    refused(make("bpe:4096"), "258 of 4096", "bpe:258")
    assert make("bpe:258")().vocab_size == 258  # as it was told
    refused(make(tmp_path / "none"), "none", "bpe:4096")
    refused(make(tmp_path), "encoder.json", "vocab.bpe")
    (tmp_path / "bad.json").write_text('{"model": 3}')
    refused(make(tmp_path / "bad.json"), "bad.json", "tokenizer.json")
    (tmp_path / "bad.json.gz").write_bytes(b"nonsense")
    refused(make(tmp_path / "bad.json.gz"), "bad.json.gz", "cannot be read")
    tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "no.json"))
    refused(make(tmp_path / "no.json"), "<|endoftext|>, </s>, <eos>", "end_of_text", "1 tokens")
    folder = gpt2_files(tmp_path / "gpt2")
    (tmp_path / "gpt2/vocab.bpe").write_text("#version: 0.2\nno pe\n")
    refused(make(folder), "encoder.json", "vocab.bpe")


def test_a_tokenizer_changed_after_saving_is_refused(refused, tmp_path):
    from_spec("bpe:260", lambda: iter(TRAINING)).save(str(tmp_path))
    path = tmp_path / "tokenizer.json"
    path.write_text(
        path.read_text().replace('"add_prefix_space": false', '"add_prefix_space": true')
    )
    refused(lambda: load(str(tmp_path)), "fingerprint")
    (tmp_path / "tokenizer_config.json").write_text('{"kind": "char"}')
    refused(lambda: load(str(tmp_path)), "char")


def test_the_end_of_text_may_be_named(refused, tmp_path):
    library = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "<|stop|>": 1}, merges=[]))
    library.add_special_tokens(["<|pad|>", "</s>"])
    path = str(tmp_path / "tokenizer.json")
    library.save(path)
    make = lambda *name: from_spec(path, lambda: iter(()), *name)
    found, named = make(), make("<|stop|>")
    assert (found.end_of_text, named.end_of_text) == (3, 1)
    assert found.fingerprint != named.fingerprint
    assert named.encode("a<|stop|>").count(1) == 0 and named.token_bytes()[1] == 0
    named.save(str(tmp_path))
    assert load(str(tmp_path)).end_of_text == 1 == from_spec(str(tmp_path), iter).end_of_text
    assert load(str(tmp_path)).fingerprint == named.fingerprint == make().fingerprint
    refused(lambda: make("<|stopp|>"), "<|stopp|>", "did you mean <|stop|>")
    refused(lambda: make("x"), "4 tokens")
    for spec in ("byte", "bpe:300"):
        call = lambda spec=spec: from_spec(spec, iter, "</s>")
        refused(call, "end_of_text", spec, kind=ConfigError, code=2)
    other = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "<|done|>": 1}, merges=[]))
    other.save(path)
    (tmp_path / "tokenizer_config.json").unlink()
    refused(make, "<|end_of_text|>", "such as <|done|>")


DEEP = "[" * 100_000
BROKEN = {
    "tokenizer.json": ["", "{", "[]", "3", "null", DEEP, '{"model": {"type": "Other"}}'],
    "tokenizer_config.json": ["", "{", "[]", "3", "null", DEEP, '{"kind": ["byte"]}'],
    "encoder.json": ["", "{", "[]", "3", DEEP, '{"a": -1}', '{"a": "b"}', '{"a": 4294967295}'],
    "vocab.bpe": ["a", "a b c", "a  b", "\x00", DEEP],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_told_in_one_line(refused, tmp_path, name):
    folder = tmp_path / "folder"
    if name in ("encoder.json", "vocab.bpe"):
        gpt2_files(folder)
    else:
        folder.mkdir()
        from_spec("bpe:260", lambda: iter(TRAINING)).save(str(folder))
    for content in BROKEN[name]:
        (folder / name).write_text(content)
        refused(lambda: from_spec(str(folder), iter).token_bytes(), folder)
        if name.startswith("tokenizer"):
            refused(lambda: load(str(folder)), folder)


def test_a_text_that_no_token_spells_is_told_in_one_line(refused, tmp_path):
    library = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="<unk>"))
    library.save(str(tmp_path / "tokenizer.json"))
    made = from_spec(str(tmp_path), iter)
    refused(lambda: made.encode("b"), tmp_path, "cannot spell a text")
