"""AdamW, from optax."""

import dataclasses

import optax
from jaxtyping import PyTree

from recursia.optimizers.optimizer import Optimizer
from recursia.params import Spec


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv 1711.05101)."""

    def direction(self, specs: PyTree[Spec]) -> optax.GradientTransformation:
        """Returns Adam without a learning rate."""
        return optax.scale_by_adam(self.b1, self.b2, self.eps)
