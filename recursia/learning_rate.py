"""The learning rate schedule."""

from typing import Any

import jax.numpy as jnp
import optax

from recursia import settings


def factor(config: settings.Schedule, num_steps: int) -> optax.Schedule:
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
