"""GEGLU: a linear hidden layer, gated by Gaussian error linear units.

Shazeer 2020, arXiv 2002.05202.
"""

import dataclasses
import functools

import jax

from recursia.feedforward.swiglu import SwiGLU


@dataclasses.dataclass(frozen=True)
class GEGLU(SwiGLU):
    """`(gelu(h gate) * (x up)) down`, without biases; the unit by its hyperbolic tangent."""

    activation = staticmethod(functools.partial(jax.nn.gelu, approximate=True))
