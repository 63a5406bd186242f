"""Routers of Mixture-of-Recursions: scores, gates, and statistics of what they choose."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from recursia import batch
from recursia.layers.branch import States
from recursia.layers.linear import dot
from recursia.params import Spec, normal

Kind = Literal["linear", "mlp"]
Score = Literal["sigmoid", "tanh", "none"]
Gating = Literal["weighted", "additive", "delta", "replace"]

INIT_STD = 0.02  # of every router, as released


def specs(
    kind: Kind, embed_dim: int, outputs: tuple[int, ...] = (), lr_scale: float = 1.0
) -> dict[str, Spec]:
    """Returns one router.

    Args:
      kind: "linear", or "mlp" with a hidden layer of twice the width.
      embed_dim: width of the states that it reads.
      outputs: () for one score per token, (n,) for n of them.
      lr_scale: factor of the learning rate of its parameters.
    """

    def matrix(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Spec:
        return Spec(shape, axes, normal(INIT_STD), lr_scale=lr_scale)

    width, axis = (embed_dim, "embed") if kind == "linear" else (2 * embed_dim, "mlp")
    out = matrix((width, *outputs), (axis, *(None for _ in outputs)))
    if kind == "linear":
        return {"out": out}
    return {"hidden": matrix((embed_dim, width), ("embed", "mlp")), "out": out}


def flops(kind: Kind, embed_dim: int, outputs: int = 1) -> int:
    """Returns the forward matrix-multiplication FLOPs of scoring one token."""
    if kind == "linear":
        return 2 * embed_dim * outputs
    return 4 * embed_dim * (embed_dim + outputs)


def logits(weights: dict[str, Array], x: States) -> Float[Array, "B T *R"]:
    """Returns the logits of each token, in float32 whatever the compute dtype."""
    return _logits(weights, x)


# The backward pass stores the states, not a float32 copy of them.
@functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
def _logits(weights: dict[str, Array], x: Array) -> Array:
    h = x.astype(jnp.float32)
    if "hidden" in weights:
        h = jax.nn.gelu(dot(h, weights["hidden"], "d,df->f"), approximate=False)
    return dot(h, weights["out"], "d,d->" if weights["out"].ndim == 1 else "d,dr->r")


def gate(logits: Float[Array, "B T"], score: Score, alpha: float) -> Float[Array, "B T"]:
    """Returns the factor of a token's update: at most `alpha`, or the logit for score "none"."""
    if score == "none":
        return logits
    return alpha * (jax.nn.sigmoid(logits) if score == "sigmoid" else jnp.tanh(logits))


def is_above(logits: Float[Array, "B T"]) -> Bool[Array, "B T"]:
    """Returns whether a token goes on in causal mode: where sigmoid(logit) >= 1/2.

    The auxiliary loss trains this sigmoid, whatever the score function.
    """
    return logits >= 0


def update(x: States, y: States, gate: Float[Array, "B T"], gating: Gating) -> States:
    """Returns a token's state after a recursion from `x` to `y`.

    "weighted" and "additive" are the published forms, which count the residual twice, as `y`
    includes it. "delta" scales only the change, and "replace" takes `y`.
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


def statistics(
    logits: Float[Array, "B T"],
    predicted: Float[Array, "B T"],
    chosen: Bool[Array, "B T"],
    active: Bool[Array, "B T"],
    score: Score,
    alpha: float,
) -> dict[str, Array]:
    """Returns router statistics of one recursion, as means over the active tokens.

    Args:
      logits: of the router, by which tokens were chosen and gated.
      predicted: logits that decide in causal mode; the auxiliary loss trains them.
      chosen: the tokens that go on.
      active: the tokens among which they were chosen.
      score: function of the logits that gives the gate.
      alpha: largest gate.
    """

    mean = lambda values, among=active: batch.mean(values, (0, 1), among)
    bce = optax.sigmoid_binary_cross_entropy(predicted, chosen.astype(jnp.float32))
    factor = gate(logits, score, alpha)
    agrees = is_above(predicted) == chosen
    return {
        "router_cross_entropy": mean(bce),
        "router_z": mean(logits**2),
        "router_agreement": mean(agrees.astype(jnp.float32)),
        "router_gate": mean(factor, chosen),
    }
