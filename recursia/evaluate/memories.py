"""Statistics of memories: which of very many values each token reads in each step, how evenly.

Usage and its divergence from even use are those of Lample et al. 2019 (arXiv 1907.05242). A table
has too many values for one of pairs of them: what two steps have in common is a share of reads.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from recursia.evaluate import probes
from recursia.layers.branch import Report
from recursia.layers.product_keys import Reads


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
    """The reads of one memory, by step of the core in the order in which a token takes them.

    Attributes:
      index: of the values that each head reads.
      share: of each in what its head reads; they sum to 1, or to 0 where a token takes no step.
      num_values: that there are.
    """

    index: Int[np.ndarray, "S B T N K"]
    share: Float[np.ndarray, "S B T N K"]
    num_values: int

    @property
    def is_there(self) -> Bool[np.ndarray, "S B T"]:
        """Whether a token takes a step."""
        return self.share.sum(-1).max(-1) > 0

    @property
    def is_by_step(self) -> bool:
        """Whether each step is told apart."""
        return bool(self.share.sum(-1).max(initial=0) < 1.5)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what is written of each token: the values that it reads, and shares, by step."""
        by_token = lambda x: x.transpose(1, 2, 0, 3, 4)
        return {"values": by_token(self.index), "shares": by_token(self.share)}


def of_report(report: Report) -> dict[str, Reads]:
    """Returns the reads in a report by token, by the name of their slot."""
    return {slot: leaf for slot, leaf in report.items() if isinstance(leaf, Reads)}


def joined(
    batches: Sequence[Mapping[str, Reads]], steps: Int[np.ndarray, "S"]
) -> dict[str, Memory]:
    """Returns the memories of batches of rows.

    Args:
      batches: what `of_report` gave of each.
      steps: `Schedule.steps`, in the order of the walk.
    """

    def all_rows(*leaves: np.ndarray) -> np.ndarray:  # [R K B T N K] of each
        return np.concatenate([leaf.reshape(-1, *leaf.shape[2:]) for leaf in leaves], 1)[steps]

    whole = {slot: jax.tree.map(all_rows, *(b[slot] for b in batches)) for slot in batches[0]}
    return {slot: Memory(r.index, r.share, r.num_keys) for slot, r in whole.items()}


def statistics(memory: Memory) -> dict[str, Any]:
    """Returns the statistics of a memory, with those by chance.

    Chance of usage: the same shares of values drawn evenly. Chance of the others: the same reads
    dealt to tokens. `used` and `kl_nats` are by step; `overlap` by pair of adjacent steps; `unread`
    counts the values that no token reads in any step.
    """
    reads = [memory.index[step][there] for step, there in enumerate(memory.is_there)]  # [P N K]
    shares = [memory.share[step][there] for step, there in enumerate(memory.is_there)]
    draw, count = np.random.default_rng(0), memory.num_values
    even = [draw.integers(count, size=index.shape) for index in reads]
    dealt = _dealt(memory)
    weighed = [_weighed(*both, count) for both in zip(reads, shares, strict=True)]
    by_chance = [_weighed(*both, count) for both in zip(even, shares, strict=True)]
    return {
        "values": count,
        "top_k": memory.index.shape[-1],
        "heads": memory.index.shape[-2],
        "steps": len(memory.index),
        "used": [float((use > 0).mean()) for use in weighed],
        "used_by_chance": [float((use > 0).mean()) for use in by_chance],
        "unread": int((np.sum(weighed, 0) == 0).sum()),
        "kl_nats": [divergence(use) for use in weighed],
        "kl_nats_by_chance": [divergence(use) for use in by_chance],
        "overlap": list(_overlaps(memory)),
        "overlap_by_chance": list(_overlaps(dealt)),
        "consistency": _consistency(memory, dealt),
    }


def divergence(use: Float[np.ndarray, "V"]) -> float:
    """Returns the divergence of the use of values from even use in nats: 0 to log V."""
    share = use / max(use.sum(), 1e-30)
    return float(np.log(len(use)) + (share * np.log(np.where(share > 0, share, 1))).sum())


def overlap(before: Int[np.ndarray, "P N K"], after: Int[np.ndarray, "P N K"], count: int) -> float:
    """Returns the share of a token's reads, all heads, that it read in the step before too.

    Args:
      before: of the tokens that take both steps, in the first.
      after: of the same, in the second.
      count: values that there are.
    """
    token = count * np.arange(len(before), dtype=np.int64)[:, None, None]
    return float(np.isin(token + after, token + before).mean()) if len(before) else 0.0


def window_counts(
    rows: Iterator[Int[np.ndarray, "P N K"]], length: int, count: int
) -> tuple[Int[np.ndarray, "C"], Int[np.ndarray, "C"]]:
    """Returns, of each window and head, how many of its tokens read each value that any reads.

    Windows follow each other in a row, unlike those of experts, which begin at every token.

    Args:
      rows: reads of the tokens of each row.
      length: tokens of a window.
      count: values that there are.

    Returns:
      The counts, and the number of the window and head that each is of, ascending.
    """
    found, before = [np.zeros(0, np.int64)], 0
    for row in rows:
        number, heads = len(row) // length, row.shape[1]
        cut = row[: number * length].reshape(number, length, *row.shape[1:])
        group = before + np.arange(number * heads).reshape(number, 1, heads, 1)
        found.append((count * group + cut).ravel())
        before += number * heads
    keys, counts = np.unique(np.concatenate(found), return_counts=True)
    return counts, keys // count


def cache_hits(counts: Int[np.ndarray, "C"], group: Int[np.ndarray, "C"], size: int) -> float:
    """Returns the share of reads that hit a cache of so many values, the most read of a window."""
    order = np.lexsort((-counts, group))
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    return float(counts[order][rank < size].sum() / max(counts.sum(), 1))


def _consistency(memory: Memory, dealt: Memory) -> list[dict[str, Any]]:
    """Returns SRP and SCH of each length of segment that some row has; see `probes`."""
    sizes = [memory.index.shape[-1] * c for c in probes.CACHES]
    sizes = [size for size in sizes if size < memory.num_values]
    mean, found = (lambda values: sum(values) / len(values)), []
    for length in probes.SEGMENTS:
        row: dict[str, Any] = {"segment": length}
        for suffix, each in (("", memory), ("_by_chance", dealt)):
            steps = [window_counts(rows, length, each.num_values) for rows in _rows(each)]
            if not (steps := [step for step in steps if len(step[0])]):
                return found
            row[f"srp{suffix}"] = mean([probes.segment_routing(c, length) for c, _ in steps])
            row[f"sch{suffix}"] = {
                str(size): mean([cache_hits(*step, size) for step in steps]) for size in sizes
            }
        found.append(row)
    return found


def _weighed(index: np.ndarray, share: np.ndarray, count: int) -> Float[np.ndarray, "V"]:
    """Returns the summed shares of each value."""
    return np.bincount(index.ravel(), share.ravel(), count)


def _overlaps(memory: Memory) -> Iterator[float]:
    for step, both in enumerate(memory.is_there[:-1] & memory.is_there[1:]):
        before, after = memory.index[step][both], memory.index[step + 1][both]
        yield overlap(before, after, memory.num_values)


def _dealt(memory: Memory) -> Memory:
    """Returns a memory whose reads are permuted among the tokens of each step, heads together."""
    draw, index = np.random.default_rng(0), memory.index.copy()
    for step, is_there in enumerate(memory.is_there):
        index[step][is_there] = draw.permutation(index[step][is_there])
    return dataclasses.replace(memory, index=index)


def _rows(memory: Memory) -> Iterator[Iterator[Int[np.ndarray, "P N K"]]]:
    """Yields, for each step, the reads of the tokens of each row that take it."""
    for index, is_there in zip(memory.index, memory.is_there, strict=True):
        yield (row[there] for row, there in zip(index, is_there, strict=True))
