"""Which requests share a batch, and when: static, or continuous by sequence or by depth.

Continuous depth-wise batching (Bae et al. 2024, arXiv 2410.20672, section 3.8): every recursion
runs the same weights, so that a batch may hold requests at different recursions, and a slot whose
token stops is refilled at the next one. A tick is one recursion of the whole batch, full or not.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool

Discipline = Literal["static", "sequence", "depth"]


class Scheduler:
    """The slots of a batch: which are free, which take the next recursion, which end a token.

    Under "depth" each slot has its own recursion: a token that stops leaves at once, and a request
    may enter before any tick. Under "sequence" all slots are at the same recursion: a token that
    stops waits for the last recursion, and a request may enter after it. Under "static" it may
    enter only when all requests of the batch have ended.
    """

    def __init__(self, num_slots: int, num_recursions: int, discipline: Discipline):
        """Makes free slots.

        Args:
          num_slots: of the batch, at least 1.
          num_recursions: most recursions of a token.
          discipline: how slots are refilled.
        """
        self.num_recursions = num_recursions
        self.discipline: Discipline = discipline
        self._is_taken = np.zeros(num_slots, bool)
        self._has_stopped = np.zeros(num_slots, bool)
        self._tick = 0  # of the token that all slots are at, unless each has its own

    @property
    def is_idle(self) -> bool:
        """Whether no slot has a request."""
        return not self._is_taken.any()

    @property
    def free(self) -> list[int]:
        """The slots that may take a request before the next tick."""
        is_closed = self._tick > 0 or (self.discipline == "static" and not self.is_idle)
        return [] if is_closed else np.flatnonzero(~self._is_taken).tolist()

    @property
    def taken(self) -> Bool[np.ndarray, "S"]:
        """The slots that have a request."""
        return self._is_taken.copy()

    @property
    def running(self) -> Bool[np.ndarray, "S"]:
        """The slots whose token takes the next recursion."""
        return self._is_taken & ~self._has_stopped

    def take(self, slots: Sequence[int]) -> None:
        """Gives free slots a request; the first token of each begins."""
        self._is_taken[list(slots)] = True

    def advance(self, goes_on: Bool[np.ndarray, "S"]) -> list[int]:
        """Makes a tick; returns the slots whose token leaves, and whose next token may begin.

        Args:
          goes_on: of the slots that ran, whether the token takes a further recursion.
        """
        self._has_stopped |= self._is_taken & ~goes_on
        if self.discipline != "depth":
            self._tick = (self._tick + 1) % self.num_recursions
            self._has_stopped |= self._is_taken & (self._tick == 0)
        left = self._has_stopped & (self._tick == 0)
        self._has_stopped &= ~left
        return np.flatnonzero(left).tolist()

    def release(self, slot: int) -> None:
        """Frees a slot whose request has ended."""
        self._is_taken[slot] = False


@dataclasses.dataclass(frozen=True)
class Count:
    """What a schedule of requests costs.

    Attributes:
      ticks: recursions of the whole batch.
      recursions: of tokens, at most the slots times the ticks.
      tokens: that were drawn in slots.
    """

    ticks: int
    recursions: int
    tokens: int

    @property
    def tokens_per_tick(self) -> float:
        """Throughput, if a tick always takes the same time and nothing else takes any."""
        return self.tokens / self.ticks


def simulate(
    requests: Sequence[Sequence[int]],
    *,
    num_slots: int,
    num_recursions: int,
    discipline: Discipline,
) -> Count:
    """Returns what requests cost that are served first come, first served.

    Prefills, embedding, head and the decision to stop cost nothing, and no token lacks keys of
    tokens that stopped before it.

    Args:
      requests: the recursions that each token of each request takes, at least one token each.
      num_slots: of the batch.
      num_recursions: most recursions of a token.
      discipline: how slots are refilled.
    """
    scheduler = Scheduler(num_slots, num_recursions, discipline)
    queue = collections.deque(collections.deque(depths) for depths in requests)
    held: list[collections.deque[int]] = [collections.deque()] * num_slots
    taken = np.zeros(num_slots, int)
    ticks = 0
    while queue or not scheduler.is_idle:
        for slot in scheduler.free[: len(queue)]:
            held[slot] = queue.popleft()
            scheduler.take([slot])
        ticks += 1
        taken += scheduler.running
        goes_on = np.array([bool(own) and taken[s] < own[0] for s, own in enumerate(held)])
        for slot in scheduler.advance(goes_on):
            held[slot].popleft()
            taken[slot] = 0
            if not held[slot]:
                scheduler.release(slot)
    depths = [depth for own in requests for depth in own]
    return Count(ticks, sum(depths), len(depths))
