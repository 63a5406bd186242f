"""AdamW, from optax."""

import dataclasses
from typing import Any

import optax

from recursia.optimizers.optimizer import Optimizer


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv 1711.05101)."""

    def direction(self, specs: Any) -> optax.GradientTransformation:
        """Returns the mean of gradients over the root of the mean of their squares."""
        return optax.scale_by_adam(self.b1, self.b2, self.eps)
