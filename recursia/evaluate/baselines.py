"""What a model must beat: n-gram models of the same tokens, and general compressors."""

import gzip
import lzma
import math

import numpy as np

from recursia.data import packing
from recursia.data.tokenizer import Tokenizer


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
    counted = np.concatenate([_tokens(path, "train") for path in train])
    parts = [_tokens(path, "validation") for path in validation]
    scored = np.concatenate([ids[: num_tokens or None] for ids in parts])
    sizes = tokenizer.token_bytes()
    size = float(sizes[scored].sum())
    text = tokenizer.decode(scored.tolist()).encode()
    unigram, bigram = ngram_bits(counted, scored, tokenizer.vocab_size)
    return {
        "unigram": unigram / size,
        "bigram": bigram / size,
        "gzip -9": 8 * len(gzip.compress(text, 9)) / size,
        "xz -9": 8 * len(lzma.compress(text, preset=9)) / size,
    }


def ngram_bits(counted: np.ndarray, scored: np.ndarray, vocab_size: int) -> tuple[float, float]:
    """Returns the bits of a text under a unigram and a bigram model of another.

    The unigram adds one to every count. The bigram backs off to it with the weight that
    Witten & Bell (1991, method C) give: the distinct followers of a token over its count and them.

    Args:
      counted: ids that the models count.
      scored: ids that they predict, each from the one before.
      vocab_size: number of ids.
    """
    ones = np.bincount(counted, minlength=vocab_size) + 1.0
    unigram = ones / ones.sum()
    pairs, counts = np.unique(_pairs(counted, vocab_size), return_counts=True)
    before = np.bincount(counted[:-1], minlength=vocab_size).astype(float)
    followers = np.bincount(pairs // vocab_size, minlength=vocab_size).astype(float)
    wanted = _pairs(scored, vocab_size)
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[place] == wanted, counts[place], 0.0)
    context = scored[:-1]
    total = before[context] + followers[context]
    back_off = followers[context] * unigram[scored[1:]]
    known = (seen + back_off) / np.maximum(total, 1.0)
    bigram = np.where(total > 0, known, unigram[scored[1:]])
    bits = lambda p: float(-np.log2(p).sum())
    first = -math.log2(unigram[scored[0]])
    return bits(unigram[scored]), first + bits(bigram)


def _pairs(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    return ids[:-1].astype(np.int64) * vocab_size + ids[1:]


def _tokens(directory: str, split: str) -> np.ndarray:
    return np.concatenate(packing.Reader(directory).tokens(split)).astype(np.int64)
