"""Vocabularies inside other files, as tokenizers of the `tokenizers` library."""

import pathlib
import struct
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from recursia.data.bpe import library_errors
from recursia.data.files import unreadable
from recursia.errors import DataError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space in SentencePiece
_LONGEST = 1 << 12  # bytes of a piece: it is cut everywhere to find what it is merged of
_CONTROL = 3  # type of a token that no text spells
# How words are cut before merging, by the name that a GGUF file gives it.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(
    tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str], words: str, origin: str
) -> Tokenizer:
    """Returns the tokenizer of a byte-level vocabulary.

    Args:
      tokens: by id.
      kinds: of each, as GGUF numbers them; control tokens are spelt by no text.
      merges: pairs with a space between, the first to be merged first.
      words: how words are cut before: "smollm" digit by digit, or "gpt-2", "default", "qwen2".
      origin: where it is from, for errors.

    Raises:
      DataError: for another way to cut words, or pairs that are not of the vocabulary.
    """
    with library_errors(origin, "its vocabulary cannot be read", "fetch it again"):
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
        library = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
        of_kind = dict(zip(tokens, kinds, strict=True))
        _add(library, [token for token, kind in of_kind.items() if kind == _CONTROL])
    level = lambda has_words: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=has_words)
    if words == "smollm":
        cut = [pre_tokenizers.Digits(individual_digits=True), level(True)]
    elif words in ("gpt-2", "gpt2", "default"):
        cut = [level(True)]
    elif words == "qwen2":
        cut = [pre_tokenizers.Split(Regex(_QWEN2), "isolated"), level(False)]
    else:
        raise DataError(
            f"{origin}: words are cut as {words!r}, which is not read; give --tokenizer=FILE"
        )
    library.pre_tokenizer = pre_tokenizers.Sequence(cut)
    library.decoder = decoders.ByteLevel()
    return library


def by_scores(path: pathlib.Path, size: int) -> Tokenizer:
    """Returns the tokenizer of a llama2.c vocabulary: pieces with scores, the best merged first.

    The file is the length of the longest piece, then for each piece its score in float32, its
    length in bytes and the bytes. The ids 0, 1, 2 are unknown, beginning and end; 256 bytes follow.

    Raises:
      DataError: if it does not hold `size` pieces.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(4 + size * (8 + _LONGEST))
    except OSError as error:
        raise unreadable(str(path), error) from None
    pieces: list[tuple[str, float]] = []
    place = 4
    try:
        while len(pieces) < size:
            score, length = struct.unpack_from("<fi", raw, place)
            place += 8 + length
            if not 0 <= length <= _LONGEST or place > len(raw):
                raise struct.error
            text = raw[place - length : place].decode("utf-8", errors="replace")
            pieces.append((text, score))
    except struct.error:
        raise DataError(
            f"{path}: holds {len(pieces)} of {size} pieces; it is of another model or cut short"
        ) from None
    names = ["<unk>", "<s>", "</s>", *(text.replace(" ", SPACE) for text, _ in pieces[3:])]
    ids = {name: i for i, name in reversed(list(enumerate(names)))}
    merges: list[tuple[float, int, int, str, str]] = []
    for name, (_, score) in list(zip(names, pieces, strict=True))[259:]:
        for cut in range(1, len(name)):
            if (left := name[:cut]) in ids and (right := name[cut:]) in ids:
                merges.append((-score, ids[left], ids[right], left, right))
    pairs = [(left, right) for *_, left, right in sorted(merges)]
    library = Tokenizer(
        models.BPE(ids, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _add(library, names[:3])
    return library


def of_bytes(size: int, end_of_text: int) -> Tokenizer:
    """Returns the tokenizer whose first 256 ids are bytes, for readers that have no other words.

    Args:
      size: of the vocabulary.
      end_of_text: its id.
    """
    shown = sorted(pre_tokenizers.ByteLevel.alphabet())
    # A byte that is no plain letter is shown as one of those from U+0100, in order.
    plain = {ord(letter) for letter in shown if ord(letter) < 256}
    later = iter(sorted(letter for letter in shown if ord(letter) >= 256))
    ids = {chr(byte) if byte in plain else next(later): byte for byte in range(256)}
    names = {i: f"<unused{i}>" for i in range(256, size)} | {end_of_text: "<|endoftext|>"}
    library = Tokenizer(models.BPE(ids | {name: i for i, name in names.items()}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    _add(library, ["<|endoftext|>"])
    return library


def _add(library: Tokenizer, names: Sequence[str]) -> None:
    library.add_special_tokens([AddedToken(name, special=True) for name in names])
