"""The number of training steps with which a trial spends a budget of FLOPs."""

from collections.abc import Mapping
from typing import Any

from recursia import budget, config
from recursia.errors import ConfigError
from recursia.sweep import trial


def steps_for(flops: float, base: str, overrides: Mapping[str, Any]) -> int:
    """Returns the steps whose training FLOPs are nearest to a budget: within half a step of it.

    Args:
      flops: of the whole training, forward and backward, as `recursia budget` counts them.
      base: the configuration, as `--config` takes it.
      overrides: values by dotted field; those of `train.num_steps` and of the schedule do not
        matter.

    Raises:
      ConfigError: for a mistake in the configuration, or a budget of less than one step.
    """
    typed = {field: trial.text(value) for field, value in overrides.items()}
    run = config.load(base, typed)
    step = budget.training_flops(run) / run.train.num_steps
    if flops < step:
        raise ConfigError(
            f"{base}: a step has {step:.3g} training FLOPs, which is more than the budget of "
            f"{flops:.3g}; take smaller models or batches, or a larger budget"
        )
    return round(flops / step)
