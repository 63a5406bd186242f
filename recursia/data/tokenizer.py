"""Which tokenizer a spec names: bytes, one learnt from the text at hand, or files."""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from recursia.data import pieces
from recursia.data import text as text_lib
from recursia.data.vocabulary import (
    CONFIG,
    END_OF_TEXT,
    LIBRARY,
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    library_errors,
    named,
    one_line,
    words,
)
from recursia.errors import ConfigError, DataError

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "Tokenizer",
    "bpe_size",
    "check",
    "from_spec",
    "load",
    "named",
]


def from_spec(
    spec: str, texts: Callable[[], Iterator[str | Iterable[str]]], end_of_text: str = ""
) -> Tokenizer:
    """Returns the tokenizer that `spec` names.

    Args:
      spec: "byte"; "bpe:N", trained on `texts()` to exactly N ids; a `tokenizer.json`, `.gz` or
        not; or a folder with that file, with GPT-2's `encoder.json` and `vocab.bpe` (`.gz` or
        not), or that `Tokenizer.save` wrote.
      texts: gives the training documents anew at each call, each a text or its parts; called for
        "bpe:N" only. Words of more than `pieces.PIECE` characters are learnt from in parts.
      end_of_text: name of the token that ends a text, of a vocabulary in a file; empty looks for
        the usual ones.

    Raises:
      ConfigError: if N is no number, or below the 257 that bytes and the end of text need; or if
        the end of text is named where it has no name.
      DataError: if the files are missing or broken, or the text is too little for N ids, or no
        token has that name.
    """
    check(spec, end_of_text)
    spec = os.path.expanduser(spec)
    if spec == "byte":
        return ByteTokenizer()
    if spec.startswith("bpe:"):
        return _train(spec, texts)
    if os.path.isdir(spec):
        return _from_folder(spec, end_of_text)
    if os.path.isfile(spec):
        return _from_file(spec, end_of_text)
    raise DataError(f"tokenizer {spec}: neither 'byte', 'bpe:4096' nor a file or folder here.")


def load(directory: str) -> Tokenizer:
    """Returns the tokenizer that `Tokenizer.save` wrote into `directory`.

    Raises:
      DataError: if it is missing, broken, or not the one that was saved.
    """
    config = _object(os.path.join(directory, CONFIG))
    kind, end = config.get("kind"), config.get("end_of_text")
    if kind not in ("byte", "bpe"):
        raise DataError(
            f"{os.path.join(directory, CONFIG)}: kind {kind!r} is neither 'byte' nor 'bpe'; "
            "prepare it again."
        )
    tokenizer = ByteTokenizer()
    if kind == "bpe":
        library = _library(os.path.join(directory, LIBRARY))
        name = library.id_to_token(end) if isinstance(end, int) and 0 <= end < 1 << 32 else None
        tokenizer = BPETokenizer(library, directory, name or "")
    if tokenizer.fingerprint != config.get("fingerprint"):
        raise DataError(
            f"{directory}: the tokenizer has fingerprint {tokenizer.fingerprint[:12]} but was "
            f"saved as {str(config.get('fingerprint'))[:12]}; prepare it again."
        )
    return tokenizer


def check(spec: str, end_of_text: str) -> None:
    """Refuses what `from_spec` would refuse whatever the text and the files.

    Raises:
      ConfigError: as `from_spec` does.
    """
    if spec.startswith("bpe:"):
        bpe_size(spec)
    if end_of_text and (spec == "byte" or spec.startswith("bpe:")):
        raise ConfigError(
            f"end_of_text is {end_of_text!r} but tokenizer {spec} makes its own; leave it out, or "
            "give a tokenizer.json"
        )


def bpe_size(spec: str) -> int:
    """Returns the N of "bpe:N".

    Raises:
      ConfigError: if it is no number, or below the 257 that bytes and the end of text need.
    """
    size, least = spec.removeprefix("bpe:"), 256 + 1
    if not (size.isascii() and size.isdecimal() and len(size) < 10 and int(size) >= least):
        raise ConfigError(f"tokenizer {spec}: {size!r} is not a number of ids of {least} or more.")
    return int(size)


def _train(spec: str, texts: Callable[[], Iterator[str]]) -> BPETokenizer:
    size = bpe_size(spec)
    library = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT[0]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    cut = words(library)
    split = lambda part: [word for word, _ in cut(part)]
    starts = lambda part: [start for _, (start, _) in cut(part)]
    parts = ((text,) if isinstance(text, str) else text for text in texts())
    library.train_from_iterator(
        (piece for text in parts for piece in pieces.pieces(text, split, starts)), trainer
    )
    if (found := library.get_vocab_size()) != size:
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


def _from_folder(directory: str, end_of_text: str) -> Tokenizer:
    def find(name: str) -> str | None:
        paths = (os.path.join(directory, name + packed) for packed in ("", ".gz"))
        return next((path for path in paths if os.path.isfile(path)), None)

    if (config := find(CONFIG)) and "kind" in _object(config):  # others write files of this name
        return load(directory)
    if library := find(LIBRARY):
        return _from_file(library, end_of_text)
    encoder, merges = find("encoder.json"), find("vocab.bpe")
    if not (encoder and merges):
        raise DataError(
            f"{directory}: no tokenizer here; a folder must hold {LIBRARY}, or encoder.json and "
            "vocab.bpe, each .gz or not."
        )
    return _from_gpt2(encoder, merges, end_of_text)


def _from_gpt2(encoder: str, merges: str, end_of_text: str) -> BPETokenizer:
    vocabulary = _object(encoder)
    lines = [line.rstrip("\r") for line in _read(merges).split("\n")]
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    with library_errors(f"{encoder}, {merges}", "no vocabulary", "fetch them again"):
        library = _byte_level(models.BPE(vocab=vocabulary, merges=pairs))
    return BPETokenizer(library, encoder, end_of_text)


def _from_file(path: str, end_of_text: str) -> BPETokenizer:
    return BPETokenizer(_library(path), path, end_of_text)


def _library(path: str) -> tokenizers.Tokenizer:
    text = _read(path)
    with library_errors(path, "not in the tokenizers library's format", "use a tokenizer.json"):
        return tokenizers.Tokenizer.from_str(text)


def _read(path: str) -> str:
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            return text_lib.decode(file.read())
    except (OSError, EOFError, zlib.error, text_lib.NotTextError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}); check the file.") from None


def _object(path: str) -> dict:
    text = _read(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: bad JSON ({one_line(error)}); fetch it again.") from None
    if not isinstance(value, dict):
        raise DataError(
            f"{path}: a JSON {type(value).__name__} where an object is expected; fetch it again."
        )
    return value
