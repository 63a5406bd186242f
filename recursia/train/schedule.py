"""The learning rate schedule."""

import optax

from recursia import settings


def factor(config: settings.Schedule, num_steps: int) -> optax.Schedule:
    """Returns the factor of the peak learning rate at a step: in [0, 1].

    "wsd" (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395) falls linearly over the last
    `decay_fraction` of the steps.
    """
    warmup = optax.linear_schedule(0.0, 1.0, config.warmup_steps)
    remaining = max(num_steps - config.warmup_steps, 1)
    match config.kind:
        case "constant":
            after = optax.constant_schedule(1.0)
        case "cosine":
            after = optax.cosine_decay_schedule(1.0, remaining, alpha=config.final_fraction)
        case "wsd":
            decay = min(max(round(config.decay_fraction * num_steps), 1), remaining)
            fall = optax.linear_schedule(1.0, config.final_fraction, decay)
            after = optax.join_schedules([optax.constant_schedule(1.0), fall], [remaining - decay])
    if not config.warmup_steps:
        return after
    return optax.join_schedules([warmup, after], [config.warmup_steps])
