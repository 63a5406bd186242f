"""Replicas that train apart: each takes steps of its own, and fragments are averaged in turn.

This is Streaming DiLoCo (Douillard et al. 2025, arXiv 2501.18512). Every replica m takes the steps
of the run's optimizer on its own rows of each batch. A fragment p of the parameters leaves every
`every_steps` steps, at an offset of its own, and arrives `delay` steps later. With the outer
parameters w, which are the same for all, and the parameters w_m of a replica when p left,

    d = mean over m of (w - w_m)        in float32, each term as `exchange` rounds it
    v = outer_momentum v + d
    w = w - outer_learning_rate (d + outer_momentum v)
    w_m = mix w_m + (1 - mix) w         with w_m as it is when p arrives

The outer parameters are the run's: they are scored, sampled from, saved and converted.
"""

import dataclasses
import math
from typing import Literal

from recursia.ranges import at_least, fraction

Exchange = Literal["float32", "bfloat16", "float4"]
BITS: dict[Exchange, int] = {"float32": 32, "bfloat16": 16, "float4": 4}
_MOST = 1024  # replicas


@dataclasses.dataclass(frozen=True)
class Replicas:
    """Replicas of the parameters that train apart, and how fragments of them are averaged.

    The defaults are remembered from arXiv 2501.18512 and not checked against its text; its
    fragments have three layers each, whose number `num_fragments` is.

    Attributes:
      count: replicas, each of which takes as many rows of a batch; 0 trains without any. A single
        one still has outer steps.
      every_steps: steps between two exchanges of the same fragment.
      num_fragments: fragments of the parameters. Those of a bank go in turn to each fragment, entry
        by entry, so that what is used again is exchanged once; all others go to the last one.
      delay: steps after which an exchanged fragment is applied; 0 applies it at once.
      mix: fraction of its own value that a replica keeps when a fragment is applied.
      outer_learning_rate: of the steps of the outer parameters.
      outer_momentum: Nesterov's, of those steps.
      exchange: format of what replicas exchange. "float4" has a sign and three bits of exponent, 0
        and the seven powers of two up to the largest entry of each matrix, which is sent too.
    """

    count: int = 0
    every_steps: int = 100
    num_fragments: int = 2
    delay: int = 1
    mix: float = 0.5
    outer_learning_rate: float = 0.4
    outer_momentum: float = 0.9
    exchange: Exchange = "float4"

    def __post_init__(self):
        at_least(0, self, "count", "delay", "outer_learning_rate")
        at_least(1, self, "every_steps", "num_fragments")
        fraction(self, "mix")
        if self.count > _MOST:
            raise ValueError(f"count: got {self.count}, takes at most {_MOST}")
        if not 0 <= self.outer_momentum < 1:
            raise ValueError(
                f"outer_momentum: got {self.outer_momentum}, takes 0 or more, and less than 1"
            )
        if self.num_fragments > self.every_steps:
            raise ValueError(
                f"num_fragments: got {self.num_fragments}, and every_steps is {self.every_steps}: "
                "a step exchanges one fragment; take at most as many"
            )
        if self.delay >= self.every_steps:
            raise ValueError(
                f"delay: got {self.delay}, and every_steps is {self.every_steps}: a fragment "
                "arrives before it leaves again; take less"
            )

    def offset(self, fragment: int) -> int:
        """Returns the first step after which a fragment leaves: the last after `every_steps`."""
        return (fragment + 1) * self.every_steps // self.num_fragments

    def leaving(self, step: int) -> int | None:
        """Returns the fragment that leaves after a step, from 1; None if there is none."""
        for fragment in range(self.num_fragments):
            since = step - self.offset(fragment)
            if since >= 0 and since % self.every_steps == 0:
                return fragment
        return None

    def arriving(self, step: int) -> int | None:
        """Returns the fragment that is applied after a step; None if there is none."""
        return self.leaving(step - self.delay)

    def arrivals(self, fragment: int, step: int) -> int:
        """Returns how often a fragment has been applied after a step."""
        since = step - self.offset(fragment) - self.delay
        return max(since // self.every_steps + 1, 0)

    def sent(self, entries: int, scales: int) -> int:
        """Returns the bytes in which a replica sends so many numbers of a fragment.

        Args:
          entries: numbers.
          scales: matrices that they are of, each of which has a scale in "float4".
        """
        bits = BITS[self.exchange]
        return math.ceil(entries * bits / 8) + (4 * scales if bits < 8 else 0)
