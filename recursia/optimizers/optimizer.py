"""The base of optimizers: clipping, weight decay and learning rates around an update rule."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from recursia.errors import ConfigError
from recursia.optimizers import row_wise
from recursia.params import Spec
from recursia.ranges import at_least

NEVER = 2**31 - 1  # a step that is not reached
_FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Optimizer(abc.ABC):
    """An update rule with gradient clipping by global norm and decoupled weight decay.

    A kind says how gradients become a direction (`direction`), and how many float32 numbers its
    state has for each entry of a parameter (`moments`). `b1`, `b2` and `eps` are those of Adam
    (Kingma & Ba 2014, arXiv 1412.6980), which every kind takes for vectors and embeddings.

    Attributes:
      learning_rate: peak learning rate.
      b1: decay of the mean of gradients.
      b2: decay of the mean of squared gradients.
      eps: added to the root of the latter.
      weight_decay: of matrices and embeddings, times the learning rate; norms and biases have none.
      clip_norm: largest global norm of the gradient; 0 does not clip.
      trainable: dotted paths of the trees of parameters that train, such as "depth" or
        "core.attention"; empty trains all. Other parameters are frozen.
      table_state: state of the tables of which a step reads few rows, as of a memory layer:
        "dense", that of other parameters, or "rows", two numbers for a row; see `row_wise`.
    """

    learning_rate: float = 3e-3
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    trainable: tuple[str, ...] = ()
    table_state: Literal["dense", "rows"] = "dense"

    def __post_init__(self):
        at_least(0, self, "learning_rate", "weight_decay", "clip_norm")
        at_least(1e-37, self, "eps")  # a smaller one is 0 in float32: 0 / 0 without a gradient
        below_one(self, "b1", "b2")

    @abc.abstractmethod
    def direction(self, specs: PyTree[Spec]) -> optax.GradientTransformation:
        """Returns the rule from gradients to steps before the learning rate."""

    def conflict(self, schedule: str) -> str:
        """Returns why a kind of schedule does not fit; "" if it does."""
        return ""

    def phases(self, decay_start: int, num_steps: int) -> str:
        """Returns which rule takes which steps; "" where one takes all."""
        return ""

    def moments(self, spec: Spec) -> int:
        """Returns how many float32 numbers the state has for each entry of a parameter."""
        return 2

    def state_bytes(self, specs: PyTree[Spec]) -> int:
        """Returns the bytes of the state, without counters of steps."""
        by_row = lambda spec: self.table_state == "rows" and spec.is_table
        numbers = (
            row_wise.NUMBERS * math.prod(spec.shape[:-1])
            if by_row(spec)
            else self.moments(spec) * math.prod(spec.shape)
            for spec in jax.tree.leaves(specs)
        )
        return _FLOAT32 * sum(numbers)

    def rule(
        self,
        specs: PyTree[Spec],
        decayed: PyTree[float],
        rate: optax.Schedule,
        decay_start: int,
    ) -> optax.GradientTransformation:
        """Returns the direction with weight decay, times the learning rate.

        Args:
          specs: of the parameters.
          decayed: factor of each parameter's weight decay; 0 has none.
          rate: the learning rate by step.
          decay_start: the step at which it begins to decay.
        """
        factors = set(jax.tree.leaves(decayed)) - {0.0}
        only = lambda factor: jax.tree.map(lambda other: other == factor, decayed)
        decays = [
            optax.add_decayed_weights(self.weight_decay * f, only(f))
            for f in sorted(factors or {1})
        ]
        decay = decays[0] if len(decays) == 1 else optax.chain(*decays)
        return optax.chain(self.direction(specs), decay, optax.scale_by_learning_rate(rate))

    def transform(
        self, specs: PyTree[Spec], factor: optax.Schedule, decay_start: int = NEVER
    ) -> optax.GradientTransformation:
        """Returns clipping, the direction, weight decay and the learning rate, in this order.

        Parameters with the same `Spec.lr_scale` are clipped together. Factors of `Spec.scales` come
        after clipping: gradients are divided by their size, so that `eps` is relative to it.

        Args:
          specs: of the parameters.
          factor: factor of the learning rate by step.
          decay_start: the step at which it begins to decay.
        """
        trains = self.trains(specs)
        decays = lambda spec, trained: spec.scales.decay * (spec.is_decayed and trained)
        decayed = jax.tree.map(decays, specs, trains)
        rate = lambda step: self.learning_rate * factor(step)
        rule = self._with_tables(specs, decayed, rate, decay_start)
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        groups = jax.tree.map(lambda spec: spec.lr_scale, specs)
        if self.trainable:  # a resumed run may have momentum from when a frozen parameter trained
            groups = jax.tree.map(lambda scale, trained: scale if trained else 0.0, groups, trains)
        scales = jax.tree.map(lambda scale, spec: scale * spec.scales.rate, groups, specs)
        if any(spec.scales.gradient != 1 for spec in jax.tree.leaves(specs)):
            rule = optax.chain(_by_size(specs), rule)
        if set(jax.tree.leaves(scales)) == {1.0}:
            return optax.chain(clip, rule)
        if set(jax.tree.leaves(groups)) != {1.0}:
            clip = _by_scale(clip, jax.tree.leaves(groups))
        rescale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scales))
        return optax.chain(clip, rule, rescale)

    def _with_tables(
        self,
        specs: PyTree[Spec],
        decayed: PyTree[float],
        rate: optax.Schedule,
        decay_start: int,
    ) -> optax.GradientTransformation:
        """Returns `rule`, and beside it that of tables if their state is by rows."""
        if self.table_state == "dense":
            return self.rule(specs, decayed, rate, decay_start)
        is_table = jax.tree.map(lambda spec: spec.is_table, specs)
        if not any(jax.tree.leaves(is_table)):
            raise ConfigError(
                "optimizer.table_state: 'rows' is for tables of memory layers, and this model has "
                "none; take 'dense'"
            )
        others = lambda tree: jax.tree.map(
            lambda value, table: optax.MaskedNode() if table else value, tree, is_table
        )
        rule = self.rule(others(specs), others(decayed), rate, decay_start)
        adam = row_wise.scale_by_row_wise_adam(self.b2, self.eps)
        tables = optax.chain(adam, optax.scale_by_learning_rate(rate))
        return row_wise.beside(rule, tables, is_table)

    def trains(self, tree: PyTree) -> PyTree[bool]:
        """Returns whether each parameter of a tree trains.

        Raises:
          ConfigError: for a path of `trainable` with no parameter below it.
        """
        # A path element without a key is inside one parameter: a shard of it.
        named = lambda path: ".".join(str(key.key) for key in path if hasattr(key, "key"))
        names = jax.tree_util.tree_map_with_path(lambda path, _: named(path), tree)
        is_below = lambda name, path: f"{name}.".startswith(f"{path}.")
        for path in self.trainable:
            if not any(is_below(name, path) for name in jax.tree.leaves(names)):
                known = ", ".join(tree)
                raise ConfigError(
                    f"optimizer.trainable: no parameter is at {path!r}; there is {known}"
                )
        is_listed = lambda name: any(is_below(name, path) for path in self.trainable)
        return jax.tree.map(lambda name: not self.trainable or is_listed(name), names)


def decaying_first(
    weight_decay: float,
    decayed: PyTree[float],
    rate: optax.Schedule,
    where: Callable[[Array, Array], Array | bool] = lambda step, param: True,
) -> optax.GradientTransformation:
    """Returns a rule from directions to steps that decays parameters before the step.

    Sums in this order are those of published code, to the last bit but one.

    Args:
      weight_decay: times the learning rate.
      decayed: factor of each parameter's weight decay; 0 has none.
      rate: the learning rate by step.
      where: the entries that decay, of a direction and its parameter.
    """

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        step = jnp.asarray(state)
        learning_rate = rate(step)

        def move(direction: Array, param: Array, decays: float) -> Array:
            change = direction * learning_rate
            if not decays:
                return -change
            kept = 1 - learning_rate * (weight_decay * decays) * where(direction, param)
            return (param * kept - change) - param

        return jax.tree.map(move, updates, params, decayed), step + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def below_one(config: Any, *names: str) -> None:
    """Refuses fields that are not in [0, 1).

    Raises:
      ValueError: with the field, its value and the range.
    """
    for name in names:
        if not 0 <= (value := getattr(config, name)) < 1:
            raise ValueError(f"{name}: got {value}, takes 0 or more, and less than 1")


def _by_size(specs: PyTree[Spec]) -> optax.GradientTransformation:
    """Returns a stateless transformation that divides gradients by their size."""

    def divided(spec: Spec, grad: Array) -> Array:
        size = jnp.asarray(spec.scales.gradient)
        return grad / jnp.reshape(size, size.shape + (1,) * ((grad.ndim - 1) * size.ndim))

    return optax.stateless(lambda grads, _: jax.tree.map(divided, specs, grads))


def _by_scale(
    change: optax.GradientTransformation, scales: list[float]
) -> optax.GradientTransformation:
    """Returns a stateless transformation, applied to the leaves of each scale by themselves."""

    def update(grads: PyTree, _: PyTree | None) -> PyTree:
        leaves, tree = jax.tree.flatten(grads)
        for scale in sorted(set(scales)):
            where = [i for i, other in enumerate(scales) if other == scale]
            changed: PyTree = change.update([leaves[i] for i in where], change.init(()))[0]
            for i, leaf in zip(where, changed, strict=True):
                leaves[i] = leaf
        return jax.tree.unflatten(tree, leaves)

    return optax.stateless(update)
