"""The learning rate schedule."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import optax

from recursia.ranges import at_least, fraction


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate over training, as a factor of its peak.

    Attributes:
      kind: after the warm-up, "constant", "cosine", or "wsd": stable, then a decay.
      warmup_steps: steps of the linear warm-up from 0.
      decay_fraction: of all steps, the length of the decay of "wsd"; 0 has none.
      decay_shape: of the decay of "wsd": "linear", or "exponential", steeper at first.
      final_fraction: the learning rate at the end, as a fraction of its peak.
    """

    kind: Literal["constant", "cosine", "wsd"] = "wsd"
    warmup_steps: int = 0
    decay_fraction: float = 0.2
    final_fraction: float = 0.0
    decay_shape: Literal["linear", "exponential"] = "linear"

    def __post_init__(self):
        at_least(0, self, "warmup_steps")
        fraction(self, "decay_fraction", "final_fraction")

    def decay_start(self, num_steps: int) -> int:
        """Returns the step of `num_steps` at which "wsd" begins to decay; `num_steps` is never."""
        remaining = max(num_steps - self.warmup_steps, 1)
        length = min(round(self.decay_fraction * num_steps), remaining)
        return self.warmup_steps + remaining - length

    def conflict(self, num_steps: int) -> str:
        """Returns why the schedule does not fit into `num_steps`, field first; "" if it fits."""
        warmup, decay = self.warmup_steps, round(self.decay_fraction * num_steps)
        if warmup and warmup >= num_steps:
            return (
                f"schedule.warmup_steps: {warmup} steps of the {num_steps} of train.num_steps are "
                "warm-up, so the learning rate never reaches its peak; lower it, or take more steps"
            )
        if self.kind == "wsd" and warmup + decay > num_steps:
            return (
                f"schedule.decay_fraction: {self.decay_fraction} of the {num_steps} steps of "
                f"train.num_steps is a decay of {decay}, which begins in the {warmup} of "
                "schedule.warmup_steps; lower one"
            )
        return ""


def factor(config: Schedule, num_steps: int) -> optax.Schedule:
    """Returns the factor of the peak learning rate at a step: in [0, 1].

    "wsd" (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395) falls over the last
    `decay_fraction` of the steps, r of them done: linearly, or as 2 * 2^-r - 1 (Megatron-LM).
    """
    warmup = optax.linear_schedule(0.0, 1.0, config.warmup_steps)
    remaining = max(num_steps - config.warmup_steps, 1)
    match config.kind:
        case "constant":
            after = optax.constant_schedule(1.0)
        case "cosine":
            after = optax.cosine_decay_schedule(1.0, remaining, alpha=config.final_fraction)
        case "wsd":
            stable = config.decay_start(num_steps) - config.warmup_steps
            length = max(remaining - stable, 1)  # of no decay, none is ever begun
            fall = optax.linear_schedule(1.0, config.final_fraction, length)
            if config.decay_shape == "exponential":
                fall = _halving(config.final_fraction, length)
            after = optax.join_schedules([optax.constant_schedule(1.0), fall], [stable])
    if not config.warmup_steps:
        return after
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def _halving(final: float, num_steps: int) -> optax.Schedule:
    def fall(step: Any) -> Any:
        done = jnp.minimum(step / num_steps, 1.0)
        return final + (1 - final) * (2 * 2.0**-done - 1)

    return fall
