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


def specs(
    kind: Kind, embed_dim: int, outputs: tuple[int, ...] = (), lr_scale: float = 1.0
) -> dict[str, Spec]:
    """Returns one router: a vector, or two layers with twice the width between them.

    Args:
      kind: which.
      embed_dim: width of the states it reads.
      outputs: () for one score a token, (n,) for n of them.
      lr_scale: of its parameters.
    """

    def matrix(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Spec:
        return Spec(shape, axes, normal(INIT_STD), lr_scale=lr_scale)

    wide, axis = (embed_dim, "embed") if kind == "linear" else (2 * embed_dim, "mlp")
    out = matrix((wide, *outputs), (axis, *(None for _ in outputs)))
    if kind == "linear":
        return {"out": out}
    return {"hidden": matrix((embed_dim, wide), ("embed", "mlp")), "out": out}


def flops(kind: Kind, embed_dim: int, outputs: int = 1) -> int:
    """Returns the forward matrix-multiplication FLOPs of scoring one token."""
    if kind == "linear":
        return 2 * embed_dim * outputs
    return 4 * embed_dim * (embed_dim + outputs)


def logits(weights: dict[str, Array], x: Float[Array, "B T D"]) -> Float[Array, "B T *R"]:
    """Returns the scores of each token, in float32 whatever the compute dtype."""
    h = x.astype(jnp.float32)
    if "hidden" in weights:
        h = jax.nn.gelu(dot(h, weights["hidden"], "d,df->f"), approximate=False)
    return dot(h, weights["out"], "d,d->" if weights["out"].ndim == 1 else "d,dr->r")


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
    predicted: Float[Array, "B T"],
    chosen: Bool[Array, "B T"],
    active: Bool[Array, "B T"],
    score: Score,
    alpha: float,
) -> dict[str, Array]:
    """Returns what one recursion reports, as means over the tokens that could go on.

    Args:
      logits: by which tokens were chosen, and gated.
      predicted: logits by which each token decides in causal mode, learning from what was chosen.
      chosen: the tokens that go on.
      active: those that could.
      score: how a logit becomes a gate.
      alpha: largest gate.
    """

    def mean(values: Array, among: Array = active) -> Array:
        count = among.sum(dtype=jnp.float32)
        return jnp.where(among, values, 0.0).sum() / jnp.maximum(count, 1.0)

    bce = optax.sigmoid_binary_cross_entropy(predicted, chosen.astype(jnp.float32))
    factor = gate(logits, score, alpha)
    agrees = is_above(predicted) == chosen
    return {
        "router_cross_entropy": mean(bce),
        "router_z": mean(logits**2),
        "router_agreement": mean(agrees.astype(jnp.float32)),
        "router_gate": mean(factor, chosen),
    }
