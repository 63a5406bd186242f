"""Statistics of routing: what a choice tells of the next step, and of the tokens around it.

Expert affinity is that of ExFlow (Yao et al. 2024, arXiv 2401.08383): the probability of an expert
given the expert of the step before. Local routing consistency is that of Liang et al. 2025 (arXiv
2505.16056), as in their code; segments are windows of consecutive tokens, from every token on.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from recursia.evaluate.traces import Trace

SEGMENTS = (4, 16, 64, 256)  # tokens
CACHES = (1, 2, 4)  # experts of a cache over those that a token takes
_QUANTILES = (0.1, 0.5, 0.9)

Taken = UInt8[np.ndarray, "P N E"]  # of tokens


def affinity(before: Taken, after: Taken) -> Float[np.ndarray, "N E E"]:
    """Returns how the choices of two steps go together: shares of all pairs, which sum to 1.

    A row over its sum is ExFlow's conditional probability. A token with k experts in each step has
    k^2 pairs.

    Args:
      before: of the tokens that take both steps, in the first.
      after: of the same, in the second.
    """
    by_head = lambda taken: taken.astype(np.float32).swapaxes(0, 1)  # [N P E]
    pairs = by_head(before).swapaxes(1, 2) @ by_head(after)
    return pairs / np.maximum(pairs.sum((-2, -1), keepdims=True), 1)


def information(joint: Float[np.ndarray, "N E E"]) -> float:
    """Returns the mutual information of the choices of two steps in nats, a mean over heads."""
    apart = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    ratio = np.where(joint > 0, joint, 1) / np.where(joint > 0, apart, 1)
    return float((joint * np.log(ratio)).sum((-2, -1)).mean())


def top_share(joint: Float[np.ndarray, "N E E"]) -> float:
    """Returns the share of choices that are the likeliest given the choice before."""
    return float(joint.max(-1).sum(-1).mean())


def windows(rows: list[Taken], length: int) -> Int[np.ndarray, "W N E"]:
    """Returns how many tokens of each window of consecutive tokens of a row took each expert."""
    found = []
    for row in rows:
        if len(row) >= length:
            total = np.cumsum(np.pad(row, ((1, 0), (0, 0), (0, 0))), 0, dtype=np.int32)
            found.append(total[length:] - total[:-length])
    return np.concatenate(found) if found else np.zeros((0, *rows[0].shape[1:]), np.int32)


def segment_routing(counts: Int[np.ndarray, "W N E"], length: int) -> float:
    """Returns the segment routing best performance (SRP): a largest F1 score.

    A router of segments gives an expert to all tokens of a segment or to none. The best one takes
    the experts that at least so many of the tokens chose; F1 is of its choices for those of tokens.

    Args:
      counts: of `windows`.
      length: tokens of a window.
    """
    number = np.bincount(counts.ravel(), minlength=length + 1)
    upwards = lambda x: np.cumsum(x[::-1])[::-1]
    chosen = number * np.arange(length + 1)
    matches, given = upwards(chosen), length * upwards(number)
    return float((2 * matches / np.maximum(given + chosen.sum(), 1)).max())


def segment_cache(counts: Int[np.ndarray, "W N E"], size: int) -> float:
    """Returns the segment cache best hit rate (SCH), as the paper's first version has it.

    It is the share of choices that hit a cache of so many experts, of each head by itself, if it
    holds the experts that a window takes most; the later SCH is of a cache that looks ahead.
    """
    kept = np.sort(counts, axis=-1)[..., -size:]
    return float(kept.sum() / max(counts.sum(), 1))


def of_router(trace: Trace) -> dict[str, Any]:
    """Returns the statistics of a router, with those of its choices dealt to tokens at random.

    Affinity is by pair of adjacent steps, over the tokens that take both; consistency a mean over
    steps; the margin by step, in quantiles over tokens. What has too few steps or tokens is None
    or left out.
    """
    by_chance = _dealt(trace)
    pairs = [_pair(trace, step) for step in range(len(trace.taken) - 1)]
    dealt = [_pair(by_chance, step) for step in range(len(trace.taken) - 1)]
    margin = [m[np.isfinite(m)] for m in trace.margin]
    return {
        "experts": trace.num_experts,
        "top_k": trace.top_k,
        "heads": trace.taken.shape[3],
        "steps": len(trace.taken),
        "affinity_nats": [information(joint) for joint in pairs],
        "affinity_nats_by_chance": [information(joint) for joint in dealt],
        "affinity_top_share": [top_share(joint) for joint in pairs],
        "affinity_top_share_by_chance": [top_share(joint) for joint in dealt],
        "consistency": consistency(trace, by_chance),
        "margin": [np.quantile(m, _QUANTILES).tolist() if len(m) else None for m in margin],
    }


def consistency(trace: Trace, by_chance: Trace | None = None) -> list[dict[str, Any]]:
    """Returns SRP and SCH of each length of segment that some row has, beside those by chance.

    Args:
      trace: of a router.
      by_chance: the same choices, dealt to tokens at random; None deals them here.
    """
    dealt, sizes = by_chance or _dealt(trace), [trace.top_k * c for c in CACHES]
    sizes = [size for size in sizes if size < trace.num_experts]
    found = []
    for length in SEGMENTS:
        row: dict[str, Any] = {"segment": length}
        for suffix, each in (("", trace), ("_by_chance", dealt)):
            steps = [c for rows in _rows(each) if len(c := windows(rows, length))]
            if not steps:
                return found
            row[f"srp{suffix}"] = _mean([segment_routing(counts, length) for counts in steps])
            row[f"sch{suffix}"] = {
                str(size): _mean([segment_cache(counts, size) for counts in steps])
                for size in sizes
            }
        found.append(row)
    return found


def of_depth(
    depth_used: Int[np.ndarray, "B T"], scores: Float[np.ndarray, "R B T"] | None, count: int
) -> dict[str, Any]:
    """Returns the statistics of the recursions that tokens take, as of a choice of one number.

    Args:
      depth_used: recursions of each token, 0 for padding.
      scores: what the policy decided by, NaN where it did not matter.
      count: most recursions of a token.

    Returns:
      `consistency`, and for each recursion that divides tokens by scores `separation`: the share of
      pairs of a token that goes on and one that does not in which the first has the higher score.
    """
    taken = (depth_used[..., None] == np.arange(1, count + 1)).astype(np.uint8)
    margin = np.full((1, *depth_used.shape, 1), np.nan, np.float32)
    trace = Trace(taken[None, :, :, None], margin, np.zeros(1, int))
    number = len(scores) if scores is not None else 0
    split = [divided(depth_used, scores[r], r) for r in range(number)]  # pyright: ignore[reportOptionalSubscript]
    return {
        "recursions": count,
        "consistency": consistency(trace),
        "separation": {str(r): separation(*found[1:]) for r, found in enumerate(split, 1) if found},
    }


def divided(
    depth_used: Int[np.ndarray, "B T"], scores: Float[np.ndarray, "B T"], recursion: int
) -> tuple[str, np.ndarray, np.ndarray] | None:
    """Returns the scores of tokens that take a recursion and of those that do not, if both are.

    Where all take it, they are of the tokens that go beyond it, and the others. The first item says
    which: "take" or "go beyond". Padding, of depth 0, is left out.
    """
    known = (depth_used > 0) & np.isfinite(scores)
    for way, least in (("take", recursion), ("go beyond", recursion + 1)):
        yes, no = scores[known & (depth_used > least)], scores[known & (depth_used <= least)]
        if len(yes) and len(no):
            return way, yes, no
    return None


def separation(yes: np.ndarray, no: np.ndarray) -> float:
    """Returns the share of pairs in which `yes` is larger, equal ones counted half (ROC area)."""
    ordered = np.sort(no)
    below = np.searchsorted(ordered, yes, side="left")
    upto = np.searchsorted(ordered, yes, side="right")
    return float((below + upto).mean() / 2 / len(no))


def _pair(trace: Trace, step: int) -> Float[np.ndarray, "N E E"]:
    both = trace.is_there[step] & trace.is_there[step + 1]
    return affinity(trace.taken[step][both], trace.taken[step + 1][both])


def _dealt(trace: Trace) -> Trace:
    """Returns a trace whose choices are permuted among the tokens of each step, heads together."""
    draw, taken = np.random.default_rng(0), trace.taken.copy()
    for step, is_there in enumerate(trace.is_there):
        taken[step][is_there] = draw.permutation(taken[step][is_there])
    return dataclasses.replace(trace, taken=taken)


def _rows(trace: Trace) -> Iterator[list[Taken]]:
    """Yields, for each step, the choices of the tokens of each row that take it."""
    for taken, is_there in zip(trace.taken, trace.is_there, strict=True):
        yield [row[there] for row, there in zip(taken, is_there, strict=True)]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
