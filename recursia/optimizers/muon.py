"""Muon: orthogonalised momentum for matrices, AdamW for all other parameters."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from recursia.optimizers.optimizer import Optimizer, below_one, decaying_first
from recursia.params import Spec
from recursia.ranges import at_least

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration
_LEAST_NORM = 1e-7
_ADAMW_SIZE = 0.2  # root mean square of AdamW's updates (Liu et al. 2025)


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024; Liu et al. 2025, 2502.16982).

    Every matrix of a bank, and every expert, is orthogonalised by itself. Embeddings, the head,
    routers, adapters, norms, biases and other vectors take AdamW, at the same learning rate.

    Attributes:
      momentum: decay of the sum of gradients.
      nesterov: whether the momentum is Nesterov's.
      iterations: number of Newton-Schulz iterations.
      precision: dtype of these iterations.
      scale: factor of a matrix's update: "match_adamw" gives it the size of AdamW's, so that
        AdamW's learning rate fits; "original" is sqrt(max(1, output features / input features)).
    """

    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    scale: Literal["match_adamw", "original"] = "match_adamw"

    def __post_init__(self):
        super().__post_init__()
        below_one(self, "momentum")
        at_least(1, self, "iterations")

    def moments(self, spec: Spec) -> int:
        """Returns 1 for a matrix, the momentum, and AdamW's 2 for other parameters."""
        return 2 if spec.matrix is None else 1

    def direction(self, specs: PyTree[Spec]) -> optax.GradientTransformation:
        """Returns the orthogonalised momentum of matrices, and Adam for other parameters."""
        labels = jax.tree.map(lambda spec: "rest" if spec.matrix is None else "matrix", specs)
        # Specs come first in the map: updates that are masked have no leaf.
        orthogonal = lambda updates, _: jax.tree.map(self._update, specs, updates)
        matrix = optax.chain(
            optax.trace(self.momentum, nesterov=self.nesterov), optax.stateless(orthogonal)
        )
        rest = optax.scale_by_adam(self.b1, self.b2, self.eps)
        return optax.partition({"matrix": matrix, "rest": rest}, labels)

    def rule(
        self,
        specs: PyTree[Spec],
        decayed: PyTree[float],
        rate: optax.Schedule,
        decay_start: int,
    ) -> optax.GradientTransformation:
        """Returns a rule that decays parameters before the step, as published."""
        return optax.chain(self.direction(specs), decaying_first(self.weight_decay, decayed, rate))

    def _update(self, spec: Spec, momentum: PyTree) -> PyTree:
        if spec.matrix is None:
            return momentum
        _, inputs, outputs = spec.matrix
        size = math.sqrt(max(1, outputs / inputs))
        if self.scale == "match_adamw":
            size = _ADAMW_SIZE * math.sqrt(max(inputs, outputs))
        matrices = momentum.reshape(spec.matrix)
        return size * orthogonal(matrices, self.iterations, self.precision).reshape(spec.shape)


def orthogonal(x: Float[Array, "N I O"], iterations: int, precision: str) -> Float[Array, "N I O"]:
    """Returns float32 matrices with about the same singular vectors, and singular values near 1.

    Args:
      x: matrices; a matrix of zeros stays zero.
      iterations: of Newton-Schulz; after 5, singular values lie between about 0.7 and 1.2.
      precision: dtype of the iterations.
    """
    is_tall = x.shape[1] > x.shape[2]
    x = x.astype(precision)
    x = x.mT if is_tall else x  # the smaller Gram matrix
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=(1, 2), keepdims=True), _LEAST_NORM)
    product = lambda a, b: jnp.matmul(a, b, precision="highest" if precision == "float32" else None)
    a, b, c = _COEFFICIENTS
    for _ in range(iterations):
        gram = product(x, x.mT)
        x = a * x + product(b * gram + c * product(gram, gram), x)
    return (x.mT if is_tall else x).astype(jnp.float32)
