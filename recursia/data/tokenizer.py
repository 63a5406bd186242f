"""Tokenizers: bytes as they are, or byte-level BPE through the `tokenizers` library."""

import abc
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from recursia.errors import ConfigError, DataError

END_OF_TEXT = ("<|endoftext|>", "</s>", "<eos>")  # names looked for, in this order
_CONFIG, _LIBRARY = "tokenizer_config.json", "tokenizer.json"


class Tokenizer(abc.ABC):
    """Text to token ids and back; not changed after it is made.

    Attributes:
      kind: "byte" or "bpe".
      vocab_size: number of ids, the largest plus one.
      end_of_text: id that ends a document. Encoding never gives it, whatever the text.
      fingerprint: sha256, in hex, of the canonical JSON of all that determines the ids.
    """

    kind: str
    vocab_size: int
    end_of_text: int
    fingerprint: str

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, with no special token added."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without specials; bytes that are not UTF-8 become U+FFFD."""

    @abc.abstractmethod
    def token_bytes(self) -> np.ndarray:
        """Returns int32 [V]: the UTF-8 bytes each token stands for, 0 for special tokens."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, with no special token added."""
        return self.encode_batch([text])[0]

    def save(self, directory: str) -> None:
        """Writes what `load` reads into an existing folder."""
        fields = ("kind", "end_of_text", "vocab_size", "fingerprint")
        with open(os.path.join(directory, _CONFIG), "w", encoding="utf-8") as file:
            json.dump({name: getattr(self, name) for name in fields}, file, indent=2)


class ByteTokenizer(Tokenizer):
    """256 bytes and an end of text: no vocabulary to learn, 257 ids."""

    kind = "byte"
    vocab_size = 257
    end_of_text = 256
    fingerprint = hashlib.sha256(b'{"end_of_text":256,"kind":"byte"}').hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the UTF-8 bytes of each text."""
        return [list(text.encode("utf-8")) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; what is not UTF-8 becomes U+FFFD, ids above 255 nothing."""
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """Returns int32 [V]: 1 for each byte, 0 for the end of text."""
        return (np.arange(self.vocab_size) < 256).astype(np.int32)


class BPETokenizer(Tokenizer):
    """A `tokenizers.Tokenizer`, byte-level unless its file says otherwise."""

    kind = "bpe"

    def __init__(self, library: tokenizers.Tokenizer, origin: str):
        """Takes over `library`, which must know one of `END_OF_TEXT`; `origin` is for errors."""
        vocabulary = library.get_vocab(with_added_tokens=True)
        name = next((name for name in END_OF_TEXT if name in vocabulary), None)
        if name is None:
            raise DataError(
                f"{origin}: none of {', '.join(END_OF_TEXT)} is among its {len(vocabulary)} "
                "tokens; add one of them as a special token."
            )
        library.add_special_tokens([name])
        library.no_padding()
        library.no_truncation()
        library.encode_special_tokens = True  # text that spells a special token stays text
        self._library = library
        self._canonical = json.loads(library.to_str())
        self.vocab_size = max(library.get_vocab(with_added_tokens=True).values()) + 1
        self.end_of_text = library.token_to_id(name)
        canonical = [self._canonical, self.end_of_text]
        dumped = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(dumped.encode()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, all cores at work; no special token is added or read."""
        return [e.ids for e in self._library.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without specials; bytes that are not UTF-8 become U+FFFD."""
        return self._library.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_bytes(self) -> np.ndarray:
        """Returns int32 [V]: the UTF-8 bytes each token stands for, 0 for special tokens.

        For a byte-level vocabulary the sum over a text's ids is exactly its bytes. A normalizer
        (NFC, as GPT-NeoX has) makes it the bytes of the normalised text; a SentencePiece
        vocabulary counts the space it puts first.
        """
        parts = (self._canonical.get("pre_tokenizer"), self._canonical.get("decoder"))
        byte_level = '"ByteLevel"' in json.dumps(parts)  # each character then stands for a byte
        sizes = np.zeros(self.vocab_size, np.int32)
        for token, i in self._library.get_vocab(with_added_tokens=True).items():
            sizes[i] = len(token) if byte_level else _sentencepiece_bytes(token)
        for i, token in self._library.get_added_tokens_decoder().items():
            sizes[i] = 0 if token.special else len(token.content.encode())
        return sizes

    def save(self, directory: str) -> None:
        """Writes what `load` reads: `tokenizer.json`, in the library's format, and the config."""
        self._library.save(os.path.join(directory, _LIBRARY))
        super().save(directory)


def from_spec(spec: str, texts: Callable[[], Iterator[str]]) -> Tokenizer:
    """Returns the tokenizer that `spec` names.

    Args:
      spec: "byte"; "bpe:N", trained on `texts()` to exactly N ids; a `tokenizer.json`, `.gz` or
        not; or a folder with that file, with GPT-2's `encoder.json` and `vocab.bpe` (`.gz` or
        not), or that `Tokenizer.save` wrote.
      texts: gives the training text anew at each call; called for "bpe:N" only.

    Raises:
      ConfigError: if N is no number, or below the 257 that bytes and the end of text need.
      DataError: if the files are missing or broken, or the text is too little for N ids.
    """
    if spec == "byte":
        return ByteTokenizer()
    if spec.startswith("bpe:"):
        return _train(spec, texts)
    if os.path.isdir(spec):
        return _from_folder(spec)
    if os.path.isfile(spec):
        return _from_file(spec)
    raise DataError(f"tokenizer {spec}: neither 'byte', 'bpe:4096' nor a file or folder here.")


def load(directory: str) -> Tokenizer:
    """Returns the tokenizer that `Tokenizer.save` wrote into `directory`.

    Raises:
      DataError: if it is missing, broken, or not the one that was saved.
    """
    path = os.path.join(directory, _CONFIG)
    config = _json(path)
    kind = config.get("kind") if isinstance(config, dict) else None
    if kind not in ("byte", "bpe"):
        raise DataError(f"{path}: kind {kind!r} is neither 'byte' nor 'bpe'; prepare it again.")
    tokenizer = ByteTokenizer() if kind == "byte" else _from_file(os.path.join(directory, _LIBRARY))
    if tokenizer.fingerprint != config.get("fingerprint"):
        raise DataError(
            f"{directory}: the tokenizer has fingerprint {tokenizer.fingerprint[:12]} but was "
            f"saved as {str(config.get('fingerprint'))[:12]}; prepare it again."
        )
    return tokenizer


def _train(spec: str, texts: Callable[[], Iterator[str]]) -> BPETokenizer:
    size, least = spec.removeprefix("bpe:"), 256 + 1
    if not size.isdecimal() or int(size) < least:
        raise ConfigError(f"tokenizer {spec}: {size!r} is not a number of ids of {least} or more.")
    library = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=int(size),
        special_tokens=[END_OF_TEXT[0]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(texts(), trainer)
    if (found := library.get_vocab_size()) != int(size):
        raise DataError(
            f"tokenizer {spec}: the training text gives {found} of {size} ids; "
            f"ask for bpe:{found} or fewer, or give more text."
        )
    return BPETokenizer(library, spec)


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """Returns `model` with GPT-2's splitting into words and mapping of bytes to characters."""
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def _from_folder(directory: str) -> Tokenizer:
    def find(name: str) -> str | None:
        paths = (os.path.join(directory, name + packed) for packed in ("", ".gz"))
        return next((path for path in paths if os.path.isfile(path)), None)

    if (config := find(_CONFIG)) and "kind" in _json(config):  # others write files of this name
        return load(directory)
    if library := find(_LIBRARY):
        return _from_file(library)
    encoder, merges = find("encoder.json"), find("vocab.bpe")
    if not (encoder and merges):
        raise DataError(
            f"{directory}: no tokenizer here; a folder must hold {_LIBRARY}, or encoder.json and "
            "vocab.bpe, each .gz or not."
        )
    return _from_gpt2(encoder, merges)


def _from_gpt2(encoder: str, merges: str) -> BPETokenizer:
    vocabulary = _json(encoder)
    lines = _read(merges).splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    try:
        library = _byte_level(models.BPE(vocab=vocabulary, merges=pairs))
    except Exception as error:  # the library raises no narrower class
        raise DataError(f"{encoder}, {merges}: {_one_line(error)}; fetch them again.") from None
    return BPETokenizer(library, encoder)


def _from_file(path: str) -> BPETokenizer:
    text = _read(path)
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower class
        raise DataError(
            f"{path}: not in the tokenizers library's format ({_one_line(error)}); "
            "use a tokenizer.json."
        ) from None
    return BPETokenizer(library, path)


def _sentencepiece_bytes(token: str) -> int:
    """Bytes of a token that spells them as <0x0A>, or is text with U+2581 for the space."""
    if len(token) == len("<0x0A>") and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode())


def _read(path: str) -> str:
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            return file.read().decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({_one_line(error)}); check the file.") from None


def _json(path: str) -> dict:
    text = _read(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: bad JSON ({_one_line(error)}); fetch it again.") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
