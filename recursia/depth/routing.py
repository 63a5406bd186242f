"""Scores of tokens, and what a scored token's update is."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia.layers.linear import dot
from recursia.params import Spec, normal

Kind = Literal["linear", "mlp"]
Score = Literal["sigmoid", "tanh", "none"]
Gating = Literal["weighted", "additive", "delta", "replace"]

INIT_STD = 0.02  # of every router, as released


def specs(kind: Kind, embed_dim: int) -> dict[str, Spec]:
    """Returns one router: a vector, or two layers with twice the width between them."""
    if kind == "linear":
        return {"out": Spec((embed_dim,), ("embed",), normal(INIT_STD))}
    hidden = Spec((embed_dim, 2 * embed_dim), ("embed", "mlp"), normal(INIT_STD))
    return {"hidden": hidden, "out": Spec((2 * embed_dim,), ("mlp",), normal(INIT_STD))}


def flops(kind: Kind, embed_dim: int) -> int:
    """Returns the forward matrix-multiplication FLOPs of scoring one token."""
    return 2 * embed_dim if kind == "linear" else 4 * embed_dim * (embed_dim + 1)


def logits(weights: dict[str, Array], x: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    """Returns a score per token, in float32 whatever the compute dtype."""
    h = x.astype(jnp.float32)
    if "hidden" in weights:
        h = jax.nn.gelu(dot(h, weights["hidden"], "d,df->f"), approximate=False)
    return dot(h, weights["out"], "d,d->")


def gate(logits: Float[Array, "B T"], score: Score, alpha: float) -> Float[Array, "B T"]:
    """Returns the factor of a token's update; `alpha` bounds it, but for the score "none"."""
    if score == "none":
        return logits
    return alpha * (jax.nn.sigmoid(logits) if score == "sigmoid" else jnp.tanh(logits))


def is_above(logits: Float[Array, "B T"], score: Score) -> Array:
    """Returns whether a token goes on when each decides alone: the squashed score's middle."""
    return logits >= (0.5 if score == "none" else 0.0)


def update(
    x: Float[Array, "B T D"], y: Float[Array, "B T D"], gate: Float[Array, "B T"], gating: Gating
) -> Float[Array, "B T D"]:
    """Returns a token's state after a recursion that turned `x` into `y`.

    "weighted" and "additive" are the published forms: `y` holds the residual already, so they hold
    it twice. "delta" scales only what the recursion changed, and "replace" takes `y` as it is.
    """
    gate = gate[..., None].astype(x.dtype)
    match gating:
        case "weighted":
            return x + gate * y
        case "additive":
            return x + y
        case "delta":
            return x + gate * (y - x)
        case "replace":
            return y
