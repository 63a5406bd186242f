"""Divergence: losses and gradients that are not finite, and spikes of the loss by a stated rule.

A loss is a spike if it is above the median of the last losses by more than a number of their
deviations. The median and the deviation from it (of Hampel 1974) hardly move with a few outliers.
All processes decide alike: they read the same numbers, which a step returns to each of them.
"""

import collections
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from recursia import settings
from recursia.errors import Diverged

LEAST_DEVIATION = 0.1  # nats per token: the least by which losses count as differing
_NORMAL = 1.4826  # the standard deviation of normal numbers, over their median deviation
_UNREAD = 1  # steps whose loss the host has not read when it sends the next one


class RolledBack(Exception):
    """Training goes back to the last checkpoint."""


class Losses:
    """The last sound losses of a run, which say how large the next may be."""

    def __init__(self, rule: settings.Divergence, past: Iterable[tuple[int, float]]):
        """Begins with the losses that a checkpoint holds.

        Args:
          rule: of the run.
          past: step and loss, in nats per token, in order.
        """
        self._rule = rule
        pairs = ((int(step), float(loss)) for step, loss in past)
        self._past = collections.deque(pairs, rule.window + _UNREAD)

    def add(self, step: int, loss: float) -> None:
        """Appends a sound loss."""
        self._past.append((step, loss))

    def past(self) -> list[list[float]]:
        """Returns step and loss of the last ones, as JSON holds them."""
        return [[step, loss] for step, loss in self._past]

    def limit(self, step: int) -> np.float32:
        """Returns the largest loss of a step that is no spike; infinity if there is no limit.

        It depends on the losses that were read before the step was sent, so that a resumed run has
        the same limits.
        """
        known = [loss for at, loss in self._past if at < step - _UNREAD][-self._rule.window :]
        if not known or not self._rule.deviations:
            return np.float32(math.inf)
        middle = np.median(known)
        deviation = _NORMAL * np.median(np.abs(np.asarray(known) - middle))
        return np.float32(middle + self._rule.deviations * max(deviation, LEAST_DEVIATION))


class Watch:
    """Judges each step, and says what becomes of a run that diverges.

    Attributes:
      losses: the last sound ones.
      passed: batches that no step took, because training went back over them.
    """

    def __init__(self, rule: settings.Divergence, meta: Mapping[str, Any]):
        """Begins at a checkpoint.

        Args:
          rule: of the run.
          meta: of the checkpoint, with what `meta` returned; empty before the first step.
        """
        self.losses = Losses(rule, meta.get("losses", ()))
        self.passed: int = meta.get("passed", 0)
        self._rule, self._seen, self._count = rule, 0, 0

    def meta(self) -> dict[str, Any]:
        """Returns what a checkpoint holds for a run that resumes from it."""
        return {"passed": self.passed, "losses": self.losses.past()}

    def batch(self, step: int) -> int:
        """Returns the number of a step's batch, from 0."""
        return step - 1 + self.passed

    def saved(self) -> None:
        """Says that a step is being saved: faults are counted anew."""
        self._count = 0

    def returned(self, meta: Mapping[str, Any], step: int) -> "Watch":
        """Returns the watch of a run that went back to a step; it takes the batches after those."""
        watch = Watch(self._rule, meta)
        watch.passed, watch._count = self._seen - step, self._count
        return watch

    def fault(self, step: int, loss: float, gradient_norm: float) -> str:
        """Returns what is wrong with the numbers of a step, or nothing; keeps a sound loss."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return f"loss {loss}, gradient norm {gradient_norm}"
        if loss > (limit := self.losses.limit(step)):
            return f"loss {loss:.6g} is a spike: the last losses allow {limit:.6g}"
        self.losses.add(step, loss)
        return ""

    def decide(
        self, step: int, reason: str, is_skipped: bool, saved: list[int], say: Callable[[str], None]
    ) -> None:
        """Goes on, goes back or ends, as the rule says.

        Args:
          step: whose numbers or state are not sound.
          reason: in words.
          is_skipped: whether the step left the state as it was, if that is the policy.
          saved: steps with a checkpoint.
          say: prints a line.

        Raises:
          Diverged: to end.
          RolledBack: to go back.
        """
        self._count += 1
        self._seen = self.batch(step) + 1
        policy, is_over = self._rule.policy, self._count > self._rule.most
        if policy == "stop" or is_over or (policy == "skip" and not is_skipped):
            last = f"the last checkpoint is of step {saved[-1]}" if saved else "no checkpoint was"
            last += "" if saved else " saved yet"
            often = f" ({self._count} times since the last save)" if self._count > 1 else ""
            raise Diverged(
                f"step {step}: {reason}{often}; {last}. Lower the learning rate, or look at the "
                "batch"
            )
        say(f"step {step}: {reason}; {'skipped' if policy == 'skip' else 'going back'}")
        if policy == "roll_back":
            raise RolledBack
