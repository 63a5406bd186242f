"""Tokenizers: bytes as they are, or a vocabulary of the `tokenizers` library."""

import abc
import contextlib
import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tokenizers

from recursia.data import pieces, text
from recursia.errors import DataError

# Names of the end of a text, looked for in this order; those that end a turn of a talk are none.
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
CONFIG, LIBRARY = "tokenizer_config.json", "tokenizer.json"
_IDS = 1 << 26  # a vocabulary has fewer, and an array of one number for each is no burden
_GROUP = 1 << 12  # ids decoded at once
_BEFORE = 16  # ids that are decoded again, for what follows them
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a byte, as SentencePiece spells it


def named(kind: str, vocab_size: int, fingerprint: str) -> str:
    """Returns what to call a tokenizer: its kind, its size, and the start of its fingerprint."""
    return f"{kind} of {vocab_size} tokens ({fingerprint[:12]})"


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

    @property
    def name(self) -> str:
        """What to call it: its kind, its size, and the start of its fingerprint."""
        return named(self.kind, self.vocab_size, self.fingerprint)

    @abc.abstractmethod
    def pieces(self, parts: Iterable[str]) -> Iterator[str]:
        """Yields one text, given in parts, in pieces whose ids together are those of the text.

        Pieces are at most `pieces.PIECE + pieces.LOOK` characters long. Inside a word that is
        longer than half of that the ids may differ from those of the word as a whole.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without specials; bytes that are not UTF-8 become U+FFFD."""

    @abc.abstractmethod
    def token_bytes(self) -> np.ndarray:
        """Returns int32 [V]: the UTF-8 bytes each token stands for, 0 for special tokens."""

    @abc.abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text as an array, with no special token added or read.

        Memory goes with the longest text; `pieces` bounds it.

        Raises:
          DataError: for half a surrogate pair, or a text that the vocabulary cannot spell.
        """
        for each in texts:
            text.check(each)
        return self._encode(texts)

    def encode(self, whole: str) -> list[int]:
        """Returns the ids of a text, with no special token added or read.

        Raises:
          DataError: as `encode_batch` does.
        """
        text.check(whole)
        return [i for piece in self.pieces((whole,)) for i in self._encode([piece])[0].tolist()]

    def continuation(self, before: Sequence[int], drawn: Sequence[int]) -> str:
        """Returns the text that `drawn` adds to that of `before`.

        It is what decoding both gives beyond the decoding of `before`: a token's text may depend on
        the one before it, such as a space, or the first half of a character, which then counts as
        drawn.
        """
        both = self.decode([*before, *drawn])
        same = 0
        for unfinished in range(4):  # last ids of `before` that may be bytes of one character
            first = self.decode(before[: len(before) - unfinished])
            if both.startswith(first):
                return both[max(same, len(first)) :]
            pairs = enumerate(zip(first, both, strict=False))
            same = max(same, next((at for at, (a, b) in pairs if a != b), 0))
        return both[same:]

    def stream(self, before: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
        """Yields text as `ids` come, which all together is `continuation(before, ids)`.

        Never half a character: its first bytes wait for the others.
        """
        return self._stream(before, ([i] for i in ids))

    def decoded(self, ids: np.ndarray) -> Iterator[str]:
        """Yields the text of many ids, some thousands at a time."""
        return self._stream(
            [], (ids[at : at + _GROUP].tolist() for at in range(0, len(ids), _GROUP))
        )

    def _stream(self, before: Sequence[int], groups: Iterable[Sequence[int]]) -> Iterator[str]:
        before, drawn = list(before), []
        for group in groups:
            drawn += group
            more = self.continuation(before, drawn)
            if more and not self._is_open(more, drawn[-1]):
                yield more
                before, drawn = before + drawn, []
                if self.decode(before[-_BEFORE:]):  # else what follows would read as a beginning
                    before = before[-_BEFORE:]
        if more := self.continuation(before, drawn):
            yield more

    def _is_open(self, decoded: str, last: int) -> bool:
        """Returns whether what follows may change the text of the last ids."""
        return decoded.endswith("\ufffd")

    def save(self, directory: str) -> None:
        """Writes what `load` reads into an existing folder."""
        fields = ("kind", "end_of_text", "vocab_size", "fingerprint")
        with open(os.path.join(directory, CONFIG), "w", encoding="utf-8") as file:
            json.dump({name: getattr(self, name) for name in fields}, file, indent=2)


class ByteTokenizer(Tokenizer):
    """256 bytes and an end of text: no vocabulary to learn, 257 ids."""

    kind = "byte"
    vocab_size = 257
    end_of_text = 256
    fingerprint = hashlib.sha256(b'{"end_of_text":256,"kind":"byte"}').hexdigest()

    def pieces(self, parts: Iterable[str]) -> Iterator[str]:
        """Yields the text as it lies."""
        for part in parts:
            for at in range(0, len(part), pieces.PIECE):
                yield part[at : at + pieces.PIECE]

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(each.encode("utf-8"), np.uint8).astype(np.int32) for each in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; what is not UTF-8 becomes U+FFFD, ids above 255 nothing."""
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """Returns int32 [V]: 1 for each byte, 0 for the end of text."""
        return (np.arange(self.vocab_size) < 256).astype(np.int32)


class BPETokenizer(Tokenizer):
    """A `tokenizers.Tokenizer`, byte-level unless its file says otherwise."""

    kind = "bpe"

    def __init__(self, library: tokenizers.Tokenizer, origin: str, end_of_text: str = ""):
        """Takes over `library`.

        Args:
          library: a vocabulary with an end of text.
          origin: where it is from, for errors.
          end_of_text: name of that token; empty takes the first of `END_OF_TEXT` that it has.

        Raises:
          DataError: if it has none of that name.
        """
        name = _end_of_text(library, origin, end_of_text)
        library.add_special_tokens([name])
        library.no_padding()
        library.no_truncation()
        library.encode_special_tokens = True  # text that spells a special token stays text
        self._library, self._origin = library, origin
        self._canonical = json.loads(library.to_str())
        self.vocab_size = max(library.get_vocab(with_added_tokens=True).values()) + 1
        if self.vocab_size > _IDS:
            raise DataError(f"{origin}: an id of {self.vocab_size - 1}, takes less than {_IDS}.")
        self.end_of_text = library.token_to_id(name)
        canonical = [self._canonical, self.end_of_text]
        dumped = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(dumped.encode()).hexdigest()
        self._has_byte_tokens = '"ByteFallback"' in json.dumps(self._canonical.get("decoder"))

    def pieces(self, parts: Iterable[str]) -> Iterator[str]:
        """Yields the text cut where the pre-tokenizer cuts and the ids stay the same."""
        return pieces.pieces(parts, lambda part: self._encode([part])[0].tolist(), self._starts)

    def _starts(self, part: str) -> list[int]:
        return [start for _, (start, _) in words(self._library)(part)]

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        with library_errors(
            self._origin, "cannot spell a text", "take one with bytes or an unknown token"
        ):
            found = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(each.ids, np.int32) for each in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without specials; bytes that are not UTF-8 become U+FFFD."""
        known = [i for i in map(int, ids) if 0 <= i < self.vocab_size]
        return self._library.decode(known, skip_special_tokens=True)

    def _is_open(self, decoded: str, last: int) -> bool:
        name = self._has_byte_tokens and self._library.id_to_token(last)
        return super()._is_open(decoded, last) or bool(name and _BYTE.fullmatch(name))

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
        self._library.save(os.path.join(directory, LIBRARY))
        super().save(directory)


def words(library: tokenizers.Tokenizer) -> Callable[[str], list[tuple[str, tuple[int, int]]]]:
    """Returns what cuts a text into words, each with its start and end in characters."""
    cutter = library.pre_tokenizer
    return cutter.pre_tokenize_str if cutter else lambda part: [(part, (0, len(part)))]


@contextlib.contextmanager
def library_errors(origin: str, what: str, advice: str) -> Iterator[None]:
    """Tells in one line what the library raises, which is no narrower class than Exception."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise DataError(f"{origin}: {what} ({one_line(error)}); {advice}.") from None
        raise


def one_line(error: BaseException) -> str:
    """Returns what an error says, on one line, shortened."""
    said = " ".join(str(getattr(error, "strerror", None) or error).split())
    return said if len(said) <= 200 else f"{said[:200]} ..."


def _end_of_text(library: tokenizers.Tokenizer, origin: str, asked: str) -> str:
    names = (asked,) if asked else END_OF_TEXT
    for name in names:
        if library.token_to_id(name) is not None:
            return name
    special = [str(added.content) for added in library.get_added_tokens_decoder().values()]
    vocabulary = library.get_vocab(with_added_tokens=True)
    special += [name for name in vocabulary if name[:1] in ("<", "[") and name[-1:] in (">", "]")]
    near = difflib.get_close_matches(asked, special, n=3, cutoff=0.5) if asked else special[:8]
    hint = f"; did you mean {', '.join(near)}?" if asked and near else ""
    if not asked:
        its = f" (such as {', '.join(near)})" if near else ""
        hint = f"; name the token that ends a text as end_of_text{its}"
    raise DataError(f"{origin}: {', '.join(names)}: none among its {len(vocabulary)} tokens{hint}")


def _sentencepiece_bytes(token: str) -> int:
    """Bytes of a token that spells them as <0x0A>, or is text with U+2581 for the space."""
    if _BYTE.fullmatch(token):
        return 1
    return len(token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode())
