"""What a model must beat: n-gram models of the same tokens, and general compressors."""

import lzma
import math
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from recursia.data import packing
from recursia.data.tokenizer import Tokenizer

_BLOCK = 1 << 22  # tokens at a time


def scores(
    train: tuple[str, ...], validation: tuple[str, ...], tokenizer: Tokenizer, num_tokens: int
) -> dict[str, float]:
    """Returns bits per byte of the validation split.

    Args:
      train: prepared directories whose training split the n-gram models count.
      validation: prepared directories whose validation split is scored.
      tokenizer: of both.
      num_tokens: of each validation split, from its beginning; 0 takes all.
    """
    counted = [shard for path in train for shard in packing.Reader(path).tokens("train")]
    readers = [packing.Reader(path) for path in validation]
    parts = [np.concatenate(reader.tokens("validation")) for reader in readers]
    scored = np.concatenate([ids[: num_tokens or None] for ids in parts])
    size = float(tokenizer.token_bytes()[scored].sum())
    unigram, bigram = ngram_bits(counted, scored, tokenizer.vocab_size)
    gzip, xz = (
        zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS),
        lzma.LZMACompressor(preset=9),
    )
    lengths = {"gzip -9": 0, "xz -9": 0}
    for text in tokenizer.decoded(scored):
        raw = text.encode()
        lengths["gzip -9"] += len(gzip.compress(raw))
        lengths["xz -9"] += len(xz.compress(raw))
    lengths["gzip -9"] += len(gzip.flush())
    lengths["xz -9"] += len(xz.flush())
    packed = {name: 8 * length / size for name, length in lengths.items()}
    return {"unigram": unigram / size, "bigram": bigram / size, **packed}


def ngram_bits(
    counted: Sequence[np.ndarray], scored: np.ndarray, vocab_size: int
) -> tuple[float, float]:
    """Returns the bits of a text under a unigram and a bigram model of another.

    The unigram adds one to every count. The bigram backs off to it with the weight that
    Witten & Bell (1991, method C) give: the distinct followers of a token over its count and them.

    Args:
      counted: ids that the models count, in parts that follow one another.
      scored: ids that they predict, each from the one before.
      vocab_size: number of ids.
    """
    ones, before = np.ones(vocab_size), np.zeros(vocab_size)
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for block in _blocks(counted):
        ones += np.bincount(block[1:], minlength=vocab_size)
        before += np.bincount(block[:-1], minlength=vocab_size)
        found, times = np.unique(_pairs(block, vocab_size), return_counts=True)
        pairs, where = np.unique(np.concatenate([pairs, found]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([counts, times]))
    ones[next(int(part[0]) for part in counted if len(part))] += 1
    unigram = ones / ones.sum()
    followers = np.bincount(pairs // vocab_size, minlength=vocab_size).astype(float)
    first = -math.log2(unigram[scored[0]])
    bits = np.array([first, first])
    for block in _blocks([scored]):
        wanted, context = _pairs(block, vocab_size), block[:-1]
        place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        seen = np.where(pairs[place] == wanted, counts[place], 0.0)
        alone = unigram[block[1:]]
        total = before[context] + followers[context]
        known = (seen + followers[context] * alone) / np.maximum(total, 1.0)
        bits -= [np.log2(alone).sum(), np.log2(np.where(total > 0, known, alone)).sum()]
    return float(bits[0]), float(bits[1])


def _blocks(parts: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields ids a block at a time, each beginning with the last of the one before."""
    last = np.zeros(0, np.int64)
    for part in parts:
        for start in range(0, len(part), _BLOCK):
            block = np.concatenate([last, part[start : start + _BLOCK].astype(np.int64)])
            yield block
            last = block[-1:]


def _pairs(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    return ids[:-1] * vocab_size + ids[1:]
