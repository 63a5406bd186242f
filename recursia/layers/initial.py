"""Initialisation of matrices."""

import dataclasses
import math
from typing import Literal

import jax

from recursia import ranges
from recursia.params import Initializer, normal


@dataclasses.dataclass(frozen=True)
class Init:
    """Initialisation of the matrices of a mixer or a feed-forward; biases start at 0.

    Attributes:
      rule: "normal" draws with standard deviation `std`; "fan_in" with `std` over the root of a
        matrix's inputs; "small" with `std` times sqrt(2 / (5 width)), no entry further than three
        deviations from 0 (Nguyen & Salazar 2019, arXiv 1910.05895).
      std: standard deviation, or a factor of the one that the rule gives.
      by_depth: whether matrices that write to the residual stream are divided by the root of twice
        the effective depth, the number of writes that the stream sums.
    """

    rule: Literal["normal", "fan_in", "small"] = "normal"
    std: float = 0.02
    by_depth: bool = False

    def __post_init__(self):
        ranges.at_least(0, self, "std")

    def read(self, width: int, inputs: int, writes: int = 1) -> Initializer:
        """Returns the initializer of a matrix.

        Args:
          width: of the residual stream.
          inputs: features that the matrix takes.
          writes: number by which the variance is divided.
        """
        if self.rule == "fan_in":
            return normal(self.std / math.sqrt(writes * inputs))
        if self.rule == "small":
            std = self.std * math.sqrt(2 / (5 * width)) / math.sqrt(writes)
            return jax.nn.initializers.truncated_normal(std, lower=-3.0, upper=3.0)
        return normal(self.std / math.sqrt(writes))

    def write(self, width: int, inputs: int, num_steps: int) -> Initializer:
        """Returns the initializer of a matrix that writes to the residual stream.

        Args:
          width: of the residual stream.
          inputs: features that the matrix takes.
          num_steps: effective depth; each step writes twice.
        """
        return self.read(width, inputs, 2 * num_steps if self.by_depth else 1)


def uniform(bound: float) -> Initializer:
    """Returns an initializer of independent uniform entries from `-bound` to `bound`."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
