"""Position-wise feed-forward networks."""

from typing import Any

import jax
from jaxtyping import Array, Float

from recursia.layers.linear import dot


def swiglu(weights: dict[str, Any], x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Returns `(silu(x gate) * (x up)) down` (Shazeer 2020, arXiv 2002.05202)."""
    gate = dot(x, weights["gate"], "d,df->f")
    up = dot(x, weights["up"], "d,df->f")
    return dot(jax.nn.silu(gate) * up, weights["down"], "f,fd->d")
