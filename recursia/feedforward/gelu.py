"""MLP with one hidden layer of GELU and biases (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""

import dataclasses
import functools

import jax

from recursia.feedforward.relu import ReLU


@dataclasses.dataclass(frozen=True)
class GELU(ReLU):
    """`gelu(h up + up_bias) down + down_bias`, with the exact error function."""

    activation = staticmethod(functools.partial(jax.nn.gelu, approximate=False))
