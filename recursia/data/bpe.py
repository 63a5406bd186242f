"""A tokenizer with a vocabulary of the `tokenizers` library, read from a file or learned."""

import contextlib
import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from recursia.data import pieces
from recursia.data.manifest import MOST_IDS
from recursia.data.vocabulary import Tokenizer
from recursia.errors import DataError

# Names of the token that ends a text, the first one found is taken; the end of a turn is not one.
END_OF_TEXT = (
    "<|endoftext|>",
    "</s>",
    "<eos>",
    "<|end_of_text|>",
    "<\N{FULLWIDTH VERTICAL LINE}end\u2581of\u2581sentence\N{FULLWIDTH VERTICAL LINE}>",
    "<EOS_TOKEN>",
    "<|eos|>",
    "[EOS]",
)
LIBRARY = "tokenizer.json"
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a token of one byte in SentencePiece


class BPETokenizer(Tokenizer):
    """A `tokenizers.Tokenizer`, byte-level unless its file says otherwise."""

    kind = "bpe"

    def __init__(self, library: tokenizers.Tokenizer, origin: str, end_of_text: str = ""):
        """Takes ownership of `library` and changes its settings.

        Args:
          library: a vocabulary with an end of text.
          origin: file or spec that it comes from, for errors.
          end_of_text: name of the token that ends a text; empty takes the first of `END_OF_TEXT`
            that the vocabulary has.

        Raises:
          DataError: if it has no such token, or too large an id.
        """
        name, self.end_of_text = _end_of_text(library, origin, end_of_text)
        library.add_special_tokens([name])
        library.no_padding()
        library.no_truncation()
        library.encode_special_tokens = True  # text that spells a special token stays text
        self._library, self._origin = library, origin
        self._canonical = json.loads(library.to_str())
        self.vocab_size = max(library.get_vocab(with_added_tokens=True).values()) + 1
        if self.vocab_size > MOST_IDS:
            raise DataError(
                f"{origin}: an id of {self.vocab_size - 1}, takes less than {MOST_IDS}."
            )
        canonical = [self._canonical, self.end_of_text]
        dumped = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(dumped.encode()).hexdigest()
        self._has_byte_tokens = '"ByteFallback"' in json.dumps(self._canonical.get("decoder"))

    def pieces(self, chunks: Iterable[str]) -> Iterator[str]:
        """Yields the text cut where the pre-tokenizer cuts and the ids stay the same."""
        starts = lambda text: [start for _, (start, _) in _words(self._library)(text)]
        return pieces.pieces(chunks, lambda text: self._encode([text])[0].tolist(), starts)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        with library_errors(
            self._origin, "cannot spell a text", "take one with bytes or an unknown token"
        ):
            encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """Returns the text of `ids` without special tokens; invalid UTF-8 becomes U+FFFD."""
        known = [i for i in map(int, ids) if 0 <= i < self.vocab_size]
        return self._library.decode(known, skip_special_tokens=True)

    def is_open(self, decoded: str, last: int) -> bool:
        """Returns whether the next id may change the end of the text decoded up to id `last`."""
        name = self._has_byte_tokens and self._library.id_to_token(last)
        return super().is_open(decoded, last) or bool(name and _BYTE.fullmatch(name))

    def token_bytes(self) -> np.ndarray:
        """Returns int32 [V]: the UTF-8 bytes each token stands for, 0 for special tokens.

        For a byte-level vocabulary the sum over the ids of a text is exactly its bytes. With a
        normalizer (NFC in GPT-NeoX) it is the bytes of the normalised text; a SentencePiece
        vocabulary also counts the space it puts first.
        """
        stages = (self._canonical.get("pre_tokenizer"), self._canonical.get("decoder"))
        is_byte_level = '"ByteLevel"' in json.dumps(stages)  # then each character is a byte
        sizes = np.zeros(self.vocab_size, np.int32)
        for token, i in self._library.get_vocab(with_added_tokens=True).items():
            sizes[i] = len(token) if is_byte_level else _sentencepiece_bytes(token)
        for i, token in self._library.get_added_tokens_decoder().items():
            sizes[i] = 0 if token.special else len(token.content.encode())
        return sizes

    def save(self, directory: str) -> None:
        """Writes `tokenizer.json`, in the library's format, and the config."""
        self._library.save(os.path.join(directory, LIBRARY))
        super().save(directory)


def learn(texts: Iterable[str | Iterable[str]], size: int, spec: str) -> BPETokenizer:
    """Returns a byte-level vocabulary of `size` ids learned from `texts`.

    Args:
      texts: the training documents, each as a text or in chunks.
      size: number of ids, bytes and the end of text included.
      spec: for errors.

    Raises:
      DataError: if the text gives fewer ids.
    """
    library = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT[0]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    cut = _words(library)
    split = lambda text: [word for word, _ in cut(text)]
    starts = lambda text: [start for _, (start, _) in cut(text)]
    documents = ((text,) if isinstance(text, str) else text for text in texts)
    library.train_from_iterator(
        (piece for chunks in documents for piece in pieces.pieces(chunks, split, starts)), trainer
    )
    if (count := library.get_vocab_size()) != size:
        raise DataError(
            f"tokenizer {spec}: the training text gives {count} of {size} ids; "
            f"ask for bpe:{count} or fewer, or give more text."
        )
    return BPETokenizer(library, spec)


def byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """Returns `model` with GPT-2's splitting into words and mapping of bytes to characters."""
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def _words(library: tokenizers.Tokenizer) -> Callable[[str], list[tuple[str, tuple[int, int]]]]:
    """Returns a function from a text to its words, each with its start and end in characters."""
    cutter = library.pre_tokenizer
    return cutter.pre_tokenize_str if cutter else lambda text: [(text, (0, len(text)))]


@contextlib.contextmanager
def library_errors(origin: str, fault: str, advice: str) -> Iterator[None]:
    """Turns errors of the library, whose only common class is Exception, into a DataError."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise DataError(f"{origin}: {fault} ({one_line(error)}); {advice}.") from None
        raise


def one_line(error: BaseException) -> str:
    """Returns the message of an error on one line, shortened."""
    message = " ".join(str(getattr(error, "strerror", None) or error).split())
    return message if len(message) <= 200 else f"{message[:200]} ..."


def _end_of_text(library: tokenizers.Tokenizer, origin: str, wanted: str) -> tuple[str, int]:
    """Returns name and id of the token that ends a text."""
    names = (wanted,) if wanted else END_OF_TEXT
    for name in names:
        if (token := library.token_to_id(name)) is not None:
            return name, token
    special = [str(added.content) for added in library.get_added_tokens_decoder().values()]
    vocabulary = library.get_vocab(with_added_tokens=True)
    special += [name for name in vocabulary if name[:1] in ("<", "[") and name[-1:] in (">", "]")]
    near = difflib.get_close_matches(wanted, special, n=3, cutoff=0.5) if wanted else special[:8]
    hint = f"; did you mean {', '.join(near)}?" if wanted and near else ""
    if not wanted:
        examples = f" (such as {', '.join(near)})" if near else ""
        hint = f"; name the token that ends a text as end_of_text{examples}"
    raise DataError(f"{origin}: {', '.join(names)}: none among its {len(vocabulary)} tokens{hint}")


def _sentencepiece_bytes(token: str) -> int:
    """Returns the bytes of a token such as <0x0A>, or of text in which U+2581 is the space."""
    if _BYTE.fullmatch(token):
        return 1
    return len(token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode())
