"""Tokenizers: the base class, and one whose tokens are bytes."""

import abc
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from recursia.data import pieces
from recursia.data import text as text_lib

CONFIG = "tokenizer_config.json"
_GROUP = 1 << 12  # ids decoded at once
_CONTEXT = 16  # ids before the new ones that are decoded with them


def named(kind: str, vocab_size: int, fingerprint: str) -> str:
    """Returns the name of a tokenizer: its kind, its size and the start of its fingerprint."""
    return f"{kind} of {vocab_size} tokens ({fingerprint[:12]})"


class Tokenizer(abc.ABC):
    """Encodes text to token ids and decodes them; immutable.

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

    @property
    def name(self) -> str:
        """Its kind, its size and the start of its fingerprint."""
        return named(self.kind, self.vocab_size, self.fingerprint)

    @abc.abstractmethod
    def pieces(self, chunks: Iterable[str]) -> Iterator[str]:
        """Yields one text, given in chunks, in pieces whose ids together are those of the text.

        Pieces have at most `pieces.PIECE + pieces.LOOK` characters. Inside a word longer than half
        of that, the ids may differ from those of the uncut word.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """Returns the text of `ids` without special tokens; invalid UTF-8 becomes U+FFFD."""

    @abc.abstractmethod
    def token_bytes(self) -> np.ndarray:
        """Returns int32 [V]: the UTF-8 bytes each token stands for, 0 for special tokens."""

    @abc.abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text; special tokens are neither added nor recognised.

        Memory grows with the longest text; `pieces` bounds its length.

        Raises:
          DataError: for a lone surrogate, or a text that the vocabulary cannot spell.
        """
        for text in texts:
            text_lib.check(text)
        return self._encode(texts)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; special tokens are neither added nor recognised.

        Raises:
          DataError: as `encode_batch` does.
        """
        text_lib.check(text)
        return [i for piece in self.pieces((text,)) for i in self._encode([piece])[0].tolist()]

    def continuation(self, before: Sequence[int], drawn: Sequence[int]) -> str:
        """Returns the text that `drawn` appends to the text of `before`.

        It is the difference between the decodings of `before + drawn` and of `before`, for the text
        of a token may depend on the token before it: a space, or a character whose bytes lie in two
        tokens. Such a character counts as drawn.
        """
        both = self.decode([*before, *drawn])
        same = 0
        for unfinished in range(4):  # last ids of `before` that may be bytes of one character
            prefix = self.decode(before[: len(before) - unfinished])
            if both.startswith(prefix):
                return both[max(same, len(prefix)) :]
            pairs = enumerate(zip(prefix, both, strict=False))
            same = max(same, next((at for at, (a, b) in pairs if a != b), 0))
        return both[same:]

    def stream(self, before: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
        """Yields text as `ids` arrive; joined, it is `continuation(before, ids)`.

        The first bytes of a character wait for the others.
        """
        return self._stream(before, ([i] for i in ids))

    def decoded(self, ids: np.ndarray) -> Iterator[str]:
        """Yields the text of many ids, a few thousand ids at a time."""
        return self._stream(
            [], (ids[at : at + _GROUP].tolist() for at in range(0, len(ids), _GROUP))
        )

    def _stream(self, before: Sequence[int], groups: Iterable[Sequence[int]]) -> Iterator[str]:
        spelling = Spelling(self, before)
        yield from filter(None, map(spelling.add, groups))
        if rest := spelling.rest():
            yield rest

    def is_open(self, decoded: str, last: int) -> bool:
        """Returns whether the next id may change the end of the text decoded up to id `last`."""
        return decoded.endswith("\ufffd")

    def save(self, directory: str) -> None:
        """Writes files that `tokenizer.load` reads into an existing folder."""
        fields = ("kind", "end_of_text", "vocab_size", "fingerprint")
        with open(os.path.join(directory, CONFIG), "w", encoding="utf-8") as file:
            json.dump({name: getattr(self, name) for name in fields}, file, indent=2)


class Spelling:
    """The text of ids that arrive after others, without what later ids may change."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]):
        """Takes the ids before the first that arrives."""
        self._tokenizer = tokenizer
        self._before, self._drawn = list(before), list[int]()

    def add(self, ids: Sequence[int]) -> str:
        """Returns the text that is certain now and was not before some ids came."""
        self._drawn += ids
        text = self.rest()
        if not text or self._tokenizer.is_open(text, self._drawn[-1]):
            return ""
        self._before, self._drawn = self._before + self._drawn, []
        last = self._before[-_CONTEXT:]
        if self._tokenizer.decode(last):  # else the next id would decode as a first one
            self._before = last
        return text

    def rest(self) -> str:
        """Returns the text that is not certain yet, such as the first bytes of a character."""
        return self._tokenizer.continuation(self._before, self._drawn)


class ByteTokenizer(Tokenizer):
    """256 bytes and an end of text: 257 ids, and no vocabulary to learn."""

    kind = "byte"
    vocab_size = 257
    end_of_text = 256
    fingerprint = hashlib.sha256(b'{"end_of_text":256,"kind":"byte"}').hexdigest()

    def pieces(self, chunks: Iterable[str]) -> Iterator[str]:
        """Yields the text in pieces of any characters, since each is encoded by itself."""
        for chunk in chunks:
            for at in range(0, len(chunk), pieces.PIECE):
                yield chunk[at : at + pieces.PIECE]

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """Returns the text of `ids`; invalid UTF-8 becomes U+FFFD, ids above 255 are skipped."""
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """Returns int32 [V]: 1 for each byte, 0 for the end of text."""
        return (np.arange(self.vocab_size) < 256).astype(np.int32)
