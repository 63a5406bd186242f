"""Adam-atan2: Adam whose quotient is an arc tangent, which needs no epsilon."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from recursia.optimizers.optimizer import Optimizer, decaying_first
from recursia.params import Spec
from recursia.ranges import above, fraction

_LEAST = 1e-5  # mean of the factors of a step that is divided by it


@dataclasses.dataclass(frozen=True)
class AdamAtan2(Optimizer):
    """Steps `a * atan2(mean, b * root of the mean square)` (Everett et al. 2024, 2407.05872).

    Gradients of any size give the same step, as `eps`, which is not read, is not there: a weight
    that a loop uses often, whose gradient sums as many terms, needs no other setting than one that
    is used once.

    Attributes:
      a: factor of the arc tangent; about 4 / pi makes steps as large as Adam's (adam-atan2-pytorch
        0.4.1).
      b: factor of the root of the mean square.
      cautious: factor of the entries of a step that point against the gradient, before the step is
        divided by the mean of its factors (Liang et al. 2024, arXiv 2411.16085); 1 leaves them.
      has_cautious_decay: whether only entries that a step moves towards 0 decay (arXiv 2510.12402).
    """

    a: float = 1.27
    b: float = 1.0
    cautious: float = 1.0
    has_cautious_decay: bool = False

    def __post_init__(self):
        super().__post_init__()
        above(0, self, "a", "b")
        fraction(self, "cautious")

    def direction(self, specs: PyTree[Spec]) -> optax.GradientTransformation:
        """Returns the arc tangent without a learning rate; its state is Adam's."""
        adam = optax.scale_by_adam(self.b1, self.b2)

        def update(
            updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
        ) -> tuple[optax.Updates, optax.OptState]:
            new: Any = adam.update(updates, state, params)[1]  # its own step is not used
            mean = optax.tree.bias_correction(new.mu, self.b1, new.count)
            square = optax.tree.bias_correction(new.nu, self.b2, new.count)
            return jax.tree.map(self._step, updates, mean, square), new

        return optax.GradientTransformation(adam.init, update)

    def rule(
        self,
        specs: PyTree[Spec],
        decayed: PyTree[float],
        rate: optax.Schedule,
        decay_start: int,
    ) -> optax.GradientTransformation:
        """Returns a rule that decays parameters before the step, as published."""
        cautious = self.has_cautious_decay
        where = lambda step, param: step * param > 0 if cautious else True
        decaying = decaying_first(self.weight_decay, decayed, rate, where)
        return optax.chain(self.direction(specs), decaying)

    def _step(self, grad: Array, mean: Array, square: Array) -> Array:
        step = self.a * jnp.arctan2(mean, self.b * jnp.sqrt(square))
        if self.cautious == 1:
            return step
        factor = jnp.where(step * grad > 0, 1.0, self.cautious)
        return step * factor / jnp.maximum(factor.mean(), _LEAST)
