"""Baselines of a language model: n-gram models of the same tokens, gzip and xz."""

import lzma
import math
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from recursia.data import packing
from recursia.data.column import Column
from recursia.data.tokenizer import Tokenizer

_BLOCK = 1 << 22  # tokens counted or scored at a time


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
    splits = [np.concatenate(reader.tokens("validation")) for reader in readers]
    scored = np.concatenate([ids[: num_tokens or None] for ids in splits])
    size = float(tokenizer.token_bytes()[scored].sum())
    unigram, bigram = ngram_bits(counted, scored, tokenizer.vocab_size)
    compressors = {
        "gzip -9": zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS),
        "xz -9": lzma.LZMACompressor(preset=9),
    }
    lengths = dict.fromkeys(compressors, 0)
    for text in tokenizer.decoded(scored):
        for name, compressor in compressors.items():
            lengths[name] += len(compressor.compress(text.encode()))
    for name, compressor in compressors.items():
        lengths[name] += len(compressor.flush())
    compressed = {name: 8 * length / size for name, length in lengths.items()}
    return {"unigram": unigram / size, "bigram": bigram / size, **compressed}


def ngram_bits(
    counted: Sequence[np.ndarray | Column], scored: np.ndarray, vocab_size: int
) -> tuple[float, float]:
    """Returns the bits of a text under a unigram and a bigram model of another text.

    The unigram adds one to every count. The bigram backs off to the unigram with the weight of
    Witten & Bell (1991, method C): the number of distinct followers of a token, divided by the sum
    of that number and the token's count.

    Args:
      counted: token ids that the models count, as consecutive arrays.
      scored: token ids whose bits are summed, each predicted from the one before.
      vocab_size: number of ids.
    """
    counts, contexts = np.ones(vocab_size), np.zeros(vocab_size)
    pairs, pair_counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for block in _blocks(counted):
        counts += np.bincount(block[1:], minlength=vocab_size)
        contexts += np.bincount(block[:-1], minlength=vocab_size)
        new, new_counts = np.unique(_pairs(block, vocab_size), return_counts=True)
        pairs, where = np.unique(np.concatenate([pairs, new]), return_inverse=True)
        pair_counts = np.bincount(where, np.concatenate([pair_counts, new_counts]))
    counts[next(int(ids[0]) for ids in counted if len(ids))] += 1
    unigram = counts / counts.sum()
    followers = np.bincount(pairs // vocab_size, minlength=vocab_size).astype(float)
    first = -math.log2(unigram[scored[0]])
    bits = np.array([first, first])
    for block in _blocks([scored]):
        wanted, context = _pairs(block, vocab_size), block[:-1]
        index = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        seen = np.where(pairs[index] == wanted, pair_counts[index], 0.0)
        alone = unigram[block[1:]]
        total = contexts[context] + followers[context]
        bigram = (seen + followers[context] * alone) / np.maximum(total, 1.0)
        bits -= [np.log2(alone).sum(), np.log2(np.where(total > 0, bigram, alone)).sum()]
    return float(bits[0]), float(bits[1])


def _blocks(arrays: Sequence[np.ndarray | Column]) -> Iterator[np.ndarray]:
    """Yields consecutive ids in blocks; each block begins with the last id of the one before."""
    last = np.zeros(0, np.int64)
    for ids in arrays:
        for start in range(0, len(ids), _BLOCK):
            block = np.concatenate([last, ids[start : start + _BLOCK].astype(np.int64)])
            yield block
            last = block[-1:]


def _pairs(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    return ids[:-1] * vocab_size + ids[1:]
