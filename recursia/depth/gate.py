"""A linear gate: one logit of each token's state, for halting and early exit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia.layers.branch import States
from recursia.layers.linear import dot
from recursia.params import Spec, normal

INIT_STD = 0.02  # of the weight


def specs(embed_dim: int, bias: float = 0.0) -> dict[str, Spec]:
    """Returns a weight and a bias, which starts at `bias`."""
    start = jax.nn.initializers.constant(bias)
    return {
        "weight": Spec((embed_dim,), ("embed",), normal(INIT_STD)),
        "bias": Spec((), (), start, is_decayed=False),
    }


def logits(weights: dict[str, Array], x: States) -> Float[Array, "B T"]:
    """Returns `x . weight + bias` in float32."""
    return dot(x.astype(jnp.float32), weights["weight"], "d,d->") + weights["bias"]


def flops(embed_dim: int) -> int:
    """Returns the forward FLOPs of one token."""
    return 2 * embed_dim
