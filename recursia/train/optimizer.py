"""AdamW and the learning rate's course, from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from recursia import settings
from recursia.errors import ConfigError


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

    Parameters of one scale of the learning rate are clipped together.

    Args:
      config: its rates.
      factor: of the learning rate, by step.
      specs: of the parameters; they say which are decayed, and their scales.
    """
    trains = trainable(config, specs)
    adamw = optax.adamw(
        lambda step: config.learning_rate * factor(step),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=jax.tree.map(lambda spec, yes: spec.is_decayed and yes, specs, trains),
    )
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    scales = jax.tree.map(lambda spec: spec.lr_scale, specs)
    if config.trainable:  # momentum from when it trained, in a run that resumes, must not move it
        scales = jax.tree.map(lambda scale, yes: scale if yes else 0.0, scales, trains)
    if set(jax.tree.leaves(scales)) == {1.0}:
        return optax.chain(clip, adamw)
    rescale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scales))
    return optax.chain(_by_scale(clip, jax.tree.leaves(scales)), adamw, rescale)


def trainable(config: settings.Optimizer, tree: Any) -> Any:
    """Returns whether each parameter of a tree trains.

    Raises:
      ConfigError: for a path of `config.trainable` with no parameter below it.
    """
    # A key without a name is within a parameter: the part of it that a device holds.
    named = lambda path: ".".join(str(key.key) for key in path if hasattr(key, "key"))
    names = jax.tree_util.tree_map_with_path(lambda path, _: named(path), tree)
    is_below = lambda name, path: f"{name}.".startswith(f"{path}.")
    for path in config.trainable:
        if not any(is_below(name, path) for name in jax.tree.leaves(names)):
            known = ", ".join(tree)
            raise ConfigError(f"optimizer.trainable: no parameter is at {path!r}; there is {known}")
    trains = lambda name: any(is_below(name, path) for path in config.trainable)
    return jax.tree.map(lambda name: not config.trainable or trains(name), names)


def _by_scale(
    change: optax.GradientTransformation, scales: list[float]
) -> optax.GradientTransformation:
    """Returns a change without a state, made to the leaves of each scale on their own."""

    def update(grads: Any, _: Any) -> Any:
        leaves, tree = jax.tree.flatten(grads)
        for scale in sorted(set(scales)):
            where = [i for i, other in enumerate(scales) if other == scale]
            changed: Any = change.update([leaves[i] for i in where], change.init(()))[0]
            for i, leaf in zip(where, changed, strict=True):
                leaves[i] = leaf
        return jax.tree.unflatten(tree, leaves)

    return optax.stateless(update)
