"""Makes the tokenizer that a spec names: bytes, one learned from text, or one in files."""

import functools
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tokenizers
from tokenizers import models

from recursia.data import bpe, files
from recursia.data import text as text_lib
from recursia.data.bpe import LIBRARY, BPETokenizer, library_errors, one_line
from recursia.data.manifest import MOST_IDS
from recursia.data.vocabulary import CONFIG, ByteTokenizer, Tokenizer
from recursia.errors import ConfigError, DataError

LONGEST = 1 << 28  # bytes of a file of a vocabulary, uncompressed


def from_spec(
    spec: str, texts: Callable[[], Iterator[str | Iterable[str]]], end_of_text: str = ""
) -> Tokenizer:
    """Returns the tokenizer that `spec` names.

    Args:
      spec: "byte"; "bpe:N", learned from `texts()` to exactly N ids; a `tokenizer.json`; a folder
        with that file or with GPT-2's `encoder.json` and `vocab.bpe`; or a folder that
        `Tokenizer.save` wrote, or its `tokenizer.json`. Each file may be compressed, with
        `.gz` after its name.
      texts: returns the training documents, each as a text or in chunks; called for "bpe:N" only.
        Words of more than `pieces.PIECE` characters are cut.
      end_of_text: name of the token that ends a text, for a vocabulary in a file; empty looks for
        the usual names.

    Raises:
      ConfigError: if N is not a number, or below the 257 that bytes and the end of text need; or if
        `end_of_text` is given for "byte" or "bpe:N".
      DataError: if the files are missing or broken, if the text gives fewer than N ids, or if no
        token has the name `end_of_text`.
    """
    check(spec, end_of_text)
    spec = os.path.expanduser(spec)
    if spec == "byte":
        return ByteTokenizer()
    if spec.startswith("bpe:"):
        return bpe.learn(texts(), bpe_size(spec), spec)
    is_one_file = os.path.basename(spec) == LIBRARY and os.path.isfile(spec)
    folder = os.path.dirname(spec) if is_one_file else spec
    if not end_of_text and _is_saved(folder):
        return load(folder)
    if os.path.isdir(spec):
        return _from_folder(spec, end_of_text)
    if os.path.isfile(spec):
        return BPETokenizer(_library(spec), spec, end_of_text)
    raise DataError(f"tokenizer {spec}: neither 'byte', 'bpe:4096' nor a file or folder here.")


def load(directory: str) -> Tokenizer:
    """Returns the tokenizer that `Tokenizer.save` wrote into `directory`.

    Raises:
      DataError: if it is missing or broken, or its fingerprint is not the saved one.
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
    """Raises the errors of `from_spec` that depend on its arguments alone.

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
      ConfigError: if it is not a number, or below the 257 that bytes and the end of text need.
    """
    size, least = spec.removeprefix("bpe:"), 256 + 1
    if not (size.isascii() and size.isdecimal() and len(size) < 10 and int(size) >= least):
        raise ConfigError(f"tokenizer {spec}: {size!r} is not a number of ids of {least} or more.")
    return int(size)


def _is_saved(directory: str) -> bool:
    """Returns whether `Tokenizer.save` wrote a folder: others write the same names, and no kind."""
    config = _found(directory, CONFIG)
    return config is not None and "kind" in _object(config)


def _found(directory: str, name: str) -> str | None:
    paths = (os.path.join(directory, name + suffix) for suffix in ("", ".gz"))
    return next((path for path in paths if os.path.isfile(path)), None)


def _from_folder(directory: str, end_of_text: str) -> Tokenizer:
    find = functools.partial(_found, directory)
    if library := find(LIBRARY):
        return BPETokenizer(_library(library), library, end_of_text)
    encoder, merges = find("encoder.json"), find("vocab.bpe")
    if not (encoder and merges):
        raise DataError(
            f"{directory}: no tokenizer here; a folder must hold {LIBRARY}, or encoder.json and "
            "vocab.bpe, each .gz or not."
        )
    return _from_gpt2(encoder, merges, end_of_text)


def _from_gpt2(encoder: str, merges: str, end_of_text: str) -> BPETokenizer:
    vocabulary = _object(encoder)
    _check_ids(encoder, vocabulary.values())
    lines = [line.rstrip("\r") for line in _read(merges).split("\n")]
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    with library_errors(f"{encoder}, {merges}", "no vocabulary", "fetch them again"):
        library = bpe.byte_level(models.BPE(vocabulary, [(left, right) for left, right in pairs]))
    return BPETokenizer(library, encoder, end_of_text)


def _library(path: str) -> tokenizers.Tokenizer:
    text = _read(path)
    inside = _object(path, text)
    vocabulary, added = inside.get("model"), inside.get("added_tokens")
    vocabulary = vocabulary.get("vocab") if isinstance(vocabulary, dict) else None
    _check_ids(path, vocabulary.values() if isinstance(vocabulary, dict) else ())
    entries = added if isinstance(added, list) else ()
    _check_ids(path, (entry.get("id") for entry in entries if isinstance(entry, dict)))
    with library_errors(path, "not in the tokenizers library's format", "use a tokenizer.json"):
        return tokenizers.Tokenizer.from_str(text)


def _read(path: str) -> str:
    try:
        with gzip.open(path) if path.endswith(".gz") else files.plain(path) as file:
            raw = file.read(LONGEST + 1)
        if len(raw) > LONGEST:
            raise DataError(f"{path}: has more than {LONGEST} bytes, the most of a vocabulary.")
        return text_lib.decode(raw)
    except (OSError, EOFError, zlib.error, text_lib.NotTextError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}); check the file.") from None


def _check_ids(path: str, ids: Iterable[Any]) -> None:
    """Refuses large ids: the library's memory grows with the largest."""
    largest = max((i for i in ids if isinstance(i, int)), default=0)
    if largest >= MOST_IDS:
        raise DataError(f"{path}: an id of {largest}, takes less than {MOST_IDS}.")


def _object(path: str, text: str | None = None) -> dict[str, Any]:
    text = _read(path) if text is None else text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: bad JSON ({one_line(error)}); fetch it again.") from None
    if not isinstance(value, dict):
        raise DataError(
            f"{path}: a JSON {type(value).__name__} where an object is expected; fetch it again."
        )
    return value
