"""The settings of an adaptive search, as a configuration file declares them."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Search:
    """An adaptive search for the lowest validation loss.

    Attributes:
      num_trials: trials in all, of all workers.
      seed: of the sampler.
      sampler: makes the Optuna sampler of each trial, called with another `seed=` each time; None
        is its default, TPE. A grid should not take the seed, which shuffles it.
      pruner: an Optuna pruner, such as `optuna.pruners.MedianPruner()`; None ends no trial early.
    """

    num_trials: int
    seed: int = 0
    sampler: Callable[..., Any] | None = None
    pruner: Any = None

    def __post_init__(self):
        is_count = lambda value: isinstance(value, int) and not isinstance(value, bool)
        if not is_count(self.num_trials) or self.num_trials < 1:
            raise ValueError(f"num_trials: got {self.num_trials!r}, takes a number from 1")
        if not is_count(self.seed):
            raise ValueError(f"seed: got {self.seed!r}, takes an integer")
        if self.sampler is not None and not callable(self.sampler):
            what = "what makes a sampler, such as optuna.samplers.RandomSampler"
            raise ValueError(f"sampler: got {self.sampler!r}, takes {what}")
        is_made = hasattr(self.pruner, "prune") and not isinstance(self.pruner, type)
        if self.pruner is not None and not is_made:
            what = "a pruner, such as optuna.pruners.MedianPruner()"
            raise ValueError(f"pruner: got {self.pruner!r}, takes {what}")
