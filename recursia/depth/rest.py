"""When another recursion no longer changes a token: what is compared, and what is little.

The criteria of recurrent depth at inference (Geiping et al. 2025, arXiv 2502.05171).
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recursia.layers.attention import Context

Criterion = Literal["none", "latent_diff", "cosine", "kl", "entropy"]
# Of the released code; for "kl" the paper has 5e-4.
THRESHOLDS = {"none": 0.0, "latent_diff": 0.03, "cosine": 1e-3, "kl": 1e-3, "entropy": 1e-3}


def observed(
    criterion: Criterion, read: Callable, x: Float[Array, "B T D"], context: Context
) -> Float[Array, "B T M"]:
    """Returns what a criterion compares of a state, in float32.

    The state itself, or the logarithms of the probabilities that coda and head make of it.
    """
    if criterion in ("kl", "entropy"):
        return jax.nn.log_softmax(read(x, context))
    return x.astype(jnp.float32)


def is_near(
    criterion: Criterion,
    threshold: float,
    before: Float[Array, "B T M"],
    after: Float[Array, "B T M"],
) -> Bool[Array, "B T"]:
    """Returns whether a recursion brought a token to rest.

    Args:
      criterion: "latent_diff", how far the state moved, over its length; "cosine", one minus that
        of the states; "kl", the divergence of the new prediction from the old in nats; "entropy",
        the change of the prediction's entropy in nats; "none" never.
      threshold: what is little.
      before: what was `observed` of the state before.
      after: the same of the state after.
    """
    length = lambda x: jnp.linalg.norm(x, axis=-1)
    match criterion:
        case "latent_diff":
            return length(after - before) < threshold * length(after)
        case "cosine":
            return (before * after).sum(-1) > (1 - threshold) * length(before) * length(after)
        case "kl":
            return (jnp.exp(after) * (after - before)).sum(-1) < threshold
        case "entropy":
            entropy = lambda x: -(jnp.exp(x) * x).sum(-1)
            return jnp.abs(entropy(after) - entropy(before)) < threshold
        case "none":
            return jnp.zeros(before.shape[:2], bool)
