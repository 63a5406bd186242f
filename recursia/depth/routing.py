"""Scores of tokens, the choice among them, and what a chosen token's update is."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

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


def is_above(logits: Float[Array, "B T"]) -> Bool[Array, "B T"]:
    """Returns whether a token goes on when each decides alone: where sigmoid(logit) >= 1/2.

    That is what the auxiliary loss trains, whatever the score makes of the logit.
    """
    return logits >= 0


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


def select(scores: Float[Array, "B T"], count: int) -> Int[Array, "B C"]:
    """Returns the places of the `count` highest scores, in order; ties go to the earlier."""
    return jnp.sort(jax.lax.top_k(scores, count)[1], axis=-1)


def pick(x: Array, index: Int[Array, "B C"] | None) -> Array:
    """Returns the rows of `x` at `index`; None is all of them."""
    return x if index is None else x[jnp.arange(x.shape[0])[:, None], index]


def statistics(
    logits: Float[Array, "B T"],
    chosen: Bool[Array, "B T"],
    active: Bool[Array, "B T"],
    score: Score,
    alpha: float,
) -> dict[str, Array]:
    """Returns what one recursion reports, as means over the tokens that could go on."""

    def mean(values: Array, among: Array = active) -> Array:
        count = among.sum(dtype=jnp.float32)
        return jnp.where(among, values, 0.0).sum() / jnp.maximum(count, 1.0)

    bce = optax.sigmoid_binary_cross_entropy(logits, chosen.astype(jnp.float32))
    factor = gate(logits, score, alpha)
    agrees = is_above(logits) == chosen
    return {
        "router_cross_entropy": mean(bce),
        "router_z": mean(logits**2),
        "router_agreement": mean(agrees.astype(jnp.float32)),
        "router_gate": mean(factor, chosen),
    }
