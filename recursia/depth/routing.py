"""Routers of Mixture-of-Recursions: scores, top-k over tokens, gather, and gated scatter."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from recursia import batch
from recursia.kernels.gather_tokens import gather_tokens
from recursia.kernels.scatter_tokens import scatter_tokens
from recursia.kernels.select_tokens import select_tokens
from recursia.layers.branch import States
from recursia.layers.linear import dot
from recursia.params import Spec, normal
from recursia.sharding import constrain, is_split, locally

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


def select(scores: Float[Array, "B T"], count: int, parts: int = 1) -> Int[Array, "B C"]:
    """Returns the indices of the `count` highest scores, ascending; ties go to the earlier.

    Args:
      scores: of the active tokens.
      count: number of tokens that go on.
      parts: equal parts of a row, each of which keeps the same number of its tokens; 1 compares the
        scores of a whole row, with an all-gather where devices hold parts of it.
    """
    length = scores.shape[1] // parts

    def run(scores: Array) -> Array:
        in_part = select_tokens(scores.reshape(-1, length), k=count // parts)
        first = length * jnp.arange(scores.shape[1] // length)[:, None]
        index = in_part.reshape(scores.shape[0], -1, count // parts) + first
        return _first(scores, parts) + index.reshape(scores.shape[0], -1)

    names = ("batch", _tokens(parts))
    return locally(run, (scores,), (names,), names)


def _tokens(parts: int) -> str | None:
    """Returns the logical axis of tokens if they stay on their device, or None."""
    return "length" if is_split("length", parts) else None


def _first(x: Array, parts: int) -> int | Array:
    """Returns the index in the row of the first token that this device holds."""
    return x.shape[1] * jax.lax.axis_index("context") if is_split("length", parts, True) else 0


def pick(x: Array, index: Int[Array, "B C"] | None) -> Array:
    """Returns the entries of `x` [B T] at `index`; None is all of them."""
    return x if index is None else jnp.take_along_axis(x, index, axis=1)


def take(x: States, index: Int[Array, "B C"] | None, parts: int = 1) -> Float[Array, "B C D"]:
    """Returns the states of the tokens at `index`, a gather by parts; None is all of them."""
    if index is None:
        return x
    names = ("batch", _tokens(parts), None), ("batch", "length")
    run = lambda x, index: gather_tokens(x, index - _first(x, parts), is_sorted=True)
    return locally(run, (x, index), names, ("batch", "length", None))


def put(
    x: States,
    index: Int[Array, "B C"] | None,
    y: Float[Array, "B C D"],
    gate: Float[Array, "B C"],
    gating: Gating,
    parts: int = 1,
    is_live: Bool[Array, "B C"] | None = None,
) -> States:
    """Returns all states after a recursion from those at `index`, ascending, to `y`: a scatter.

    Other states, and those of tokens that are not live, stay the same bit for bit.
    """
    if index is None:
        new = update(x, y, gate, gating)
        return new if is_live is None else jnp.where(is_live[..., None], new, x)
    if is_live is not None:
        unchanged = take(x, index, parts) if gating in ("delta", "replace") else jnp.zeros_like(y)
        y = jnp.where(is_live[..., None], y, unchanged)
    if gating == "replace":
        return x.at[jnp.arange(x.shape[0])[:, None], index].set(y)
    added = y - take(x, index, parts) if gating == "delta" else y
    scale = None if gating == "additive" else gate
    states = "batch", _tokens(parts), None
    run = lambda x, index, *rest: scatter_tokens(x, index - _first(x, parts), *rest, is_sorted=True)
    names = states, states[:2], states, states[:2]
    x = locally(run, (x, index, added, scale), names, states)
    return constrain(x, ("batch", "length", None))


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
