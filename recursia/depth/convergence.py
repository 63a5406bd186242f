"""Convergence of a token's state under recursion: criteria for early exit at inference.

The criteria of recurrent depth (Geiping et al. 2025, arXiv 2502.05171).
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from recursia.layers.attention import Context
from recursia.layers.branch import States

Criterion = Literal["none", "latent_diff", "cosine", "kl", "entropy"]
# Of the released code; for "kl" the paper has 5e-4.
THRESHOLDS = {"none": 0.0, "latent_diff": 0.03, "cosine": 1e-3, "kl": 1e-3, "entropy": 1e-3}


def observed(
    criterion: Criterion, read: Callable[[Array, Context], Array], x: States, context: Context
) -> Float[Array, "B T M"]:
    """Returns the float32 vectors that a criterion compares before and after a recursion.

    Args:
      criterion: "kl" and "entropy" compare log-probabilities of the next token, the others states.
      read: the logits of states, by coda and head.
      x: hidden states.
      context: of their tokens.
    """
    if criterion in ("kl", "entropy"):
        return jax.nn.log_softmax(read(x, context))
    return x.astype(jnp.float32)


def has_converged(
    criterion: Criterion,
    threshold: float,
    before: Float[Array, "B T M"],
    after: Float[Array, "B T M"],
) -> Bool[Array, "B T"]:
    """Returns whether a recursion changed a token by less than a threshold.

    Args:
      criterion: "latent_diff", the norm of the change of the state over the norm of the new state;
        "cosine", one minus the cosine of both states; "kl", the divergence of the new prediction
        from the old in nats; "entropy", the change of the prediction's entropy in nats; "none",
        never.
      threshold: in the units of the criterion.
      before: `observed` before the recursion.
      after: `observed` after it.
    """
    norm = lambda x: jnp.linalg.norm(x, axis=-1)
    match criterion:
        case "latent_diff":
            return norm(after - before) < threshold * norm(after)
        case "cosine":
            return (before * after).sum(-1) > (1 - threshold) * norm(before) * norm(after)
        case "kl":
            return (jnp.exp(after) * (after - before)).sum(-1) < threshold
        case "entropy":
            entropy = lambda x: -(jnp.exp(x) * x).sum(-1)
            return jnp.abs(entropy(after) - entropy(before)) < threshold
        case "none":
            return jnp.zeros(before.shape[:2], bool)
