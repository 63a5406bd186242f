"""Coordinate checks: whether activations, and how far steps move them, depend on a model's size.

Models of several widths, or numbers of recursions, take a few steps on one batch (Yang et al. 2022,
arXiv 2203.03466, appendix D.1). Where a parameterisation is right, the mean sizes of the entries of
their states and logits do not grow with the size, and neither do the changes of these.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from recursia import model, params, scaling
from recursia.architecture import Model
from recursia.errors import ConfigError
from recursia.optimizers.optimizer import Optimizer
from recursia.params import Params

Point = Mapping[str, tuple[float, float]]  # by place: mean size before, mean change by the steps
Values = dict[str, Array]  # activations by place
_BYTES = 257  # vocabulary of a model whose own comes with its data


def measure(config: Model, optimizer: Optimizer, num_steps: int, shape: tuple[int, int]) -> Point:
    """Returns the mean absolute entries at each place of a model, and how far steps move them.

    Places are the input of the core, its output where the depth policy keeps states, and logits.

    Args:
      config: the model.
      optimizer: whose learning rate is constant here.
      num_steps: on one batch of random tokens.
      shape: rows and tokens of the batch.
    """
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, (shape[0], shape[1] + 1)), jnp.int32)
    specs = model.specs(config)
    chain = optimizer.transform(specs, optax.constant_schedule(1.0))
    loss = functools.partial(_loss, config, tokens)

    @jax.jit
    def step(weights: Params, state: optax.OptState) -> tuple[Params, optax.OptState]:
        updates, state = chain.update(jax.grad(loss)(weights), state, weights)
        return dict(optax.apply_updates(weights, updates)), state  # pyright: ignore

    values = jax.jit(functools.partial(_values, config, tokens[:, :-1]))
    weights = params.init(specs, jax.random.key(0))
    before, state = values(weights), chain.init(weights)
    for _ in range(num_steps):
        weights, state = step(weights, state)
    after = values(weights)
    size = lambda x: float(jnp.abs(x).mean())
    return {place: (size(x), size(after[place] - x)) for place, x in before.items()}


def _loss(config: Model, tokens: Int[Array, "B T"], weights: Params) -> Array:
    out = model.apply(weights, tokens[:, :-1], config, mode="train")
    scores = model.logits(weights, out.hidden, config)
    return optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:]).mean()


def _values(config: Model, tokens: Int[Array, "B T"], weights: Params) -> Values:
    out = model.apply(weights, tokens, config, mode="eval")
    found = {"core input": model.embedded(weights, tokens, config)}
    if out.aux.states is not None:
        found["core output"] = out.aux.states[-1]
    found["logits"] = model.logits(weights, out.hidden, config)
    return {place: x.astype(jnp.float32) for place, x in found.items()}


def along(
    config: Model,
    optimizer: Optimizer,
    axis: str,
    sizes: Sequence[int],
    num_steps: int = 8,
    shape: tuple[int, int] = (4, 32),
) -> dict[int, Point]:
    """Returns the points of a model along an axis, by size.

    Args:
      config: the model.
      optimizer: as in `measure`.
      axis: "width" or "recursions".
      sizes: widths of the residual stream, with which all widths and the number of heads grow, or
        numbers of recursions.
      num_steps: as in `measure`.
      shape: as in `measure`.

    Raises:
      ConfigError: for a size that the model cannot have.
    """
    sized = config if config.vocab_size else config.sized(_BYTES)
    found = {}
    for size in sizes:
        try:
            found[size] = widened(sized, size) if axis == "width" else deepened(sized, size)
        except ValueError as error:
            raise ConfigError(f"{axis} {size}: {error}") from None
    return {size: measure(made, optimizer, num_steps, shape) for size, made in found.items()}


def widened(config: Model, width: int) -> Model:
    """Returns a model of another width: hidden widths and numbers of heads grow in proportion.

    Raises:
      ValueError: if one of them would not be a whole number.
    """
    ratio, new = width / config.block.embed_dim, {"embed_dim": width}
    for name in ("mlp_dim", "expert_dim", "num_heads", "num_kv_heads"):
        if size := scaling.width_of(config.block, name):
            new[name] = round(size * ratio)
            if new[name] != size * ratio:
                raise ValueError(f"{name} {size} would be {size * ratio:g}; take another width")
    made = scaling.with_widths(config, **new)
    if made is None:
        raise ValueError(f"the block has no such widths: {new}")
    return made


def deepened(config: Model, num_recursions: int) -> Model:
    """Returns a model of the same blocks with another number of recursions, as if trained so.

    Raises:
      ValueError: if the depth policy or the sharing has none of so many.
    """
    depth = dataclasses.replace(config.depth, num_recursions=num_recursions)
    layers = sum(config.ends.values()) + num_recursions * config.schedule.num_blocks
    return dataclasses.replace(config, depth=depth, num_layers=layers)


def growth(points: Mapping[int, Point], place: str) -> tuple[float, float]:
    """Returns the power of the size with which a place and its change grow, fitted over all sizes.

    0 does not grow.

    Args:
      points: of `along`, at least two.
      place: "core input", "core output" or "logits".
    """
    log = np.log([points[size][place] for size in points])
    slope = np.polyfit(np.log(list(points)), log, 1)[0]
    return float(slope[0]), float(slope[1])
