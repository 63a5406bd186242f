"""AdamW and the learning rate's course, from optax."""

from typing import Any

import jax
import optax

from recursia import settings


def schedule(config: settings.Schedule, num_steps: int) -> optax.Schedule:
    """Returns the factor of the peak learning rate at a step: in [0, 1].

    "wsd" (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395) falls linearly over the last
    `decay_fraction` of the steps.
    """
    warmup = optax.linear_schedule(0.0, 1.0, config.warmup_steps)
    rest = max(num_steps - config.warmup_steps, 1)
    match config.kind:
        case "constant":
            after = optax.constant_schedule(1.0)
        case "cosine":
            after = optax.cosine_decay_schedule(1.0, rest, alpha=config.final_fraction)
        case "wsd":
            decay = min(max(round(config.decay_fraction * num_steps), 1), rest)
            fall = optax.linear_schedule(1.0, config.final_fraction, decay)
            after = optax.join_schedules([optax.constant_schedule(1.0), fall], [rest - decay])
    if not config.warmup_steps:
        return after
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make(
    config: settings.Optimizer, factor: optax.Schedule, specs: Any
) -> optax.GradientTransformation:
    """Returns clipping by the global norm, then AdamW.

    Args:
      config: its rates.
      factor: of the learning rate, by step.
      specs: of the parameters; they say which are decayed.
    """
    decayed = jax.tree.map(lambda spec: spec.is_decayed, specs)
    adamw = optax.adamw(
        lambda step: config.learning_rate * factor(step),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, adamw)
