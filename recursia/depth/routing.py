"""Scores of tokens, the choice among them, and what a chosen token's update is."""

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
    return _logits(weights, x)


# The backward pass keeps the states, not a copy of them in float32.
@functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
def _logits(weights: dict[str, Array], x: Array) -> Array:
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


def select(scores: Float[Array, "B T"], count: int, parts: int = 1) -> Int[Array, "B C"]:
    """Returns the places of the `count` highest scores, in order; ties go to the earlier.

    Args:
      scores: of the tokens that could go on.
      count: how many do.
      parts: equal parts of a row, each of which keeps as many of its own; 1 compares whole rows,
        also where devices hold parts of them.
    """
    length = scores.shape[1] // parts

    def run(scores: Array) -> Array:
        among = select_tokens(scores.reshape(-1, length), k=count // parts)
        first = length * jnp.arange(scores.shape[1] // length)[:, None]
        found = among.reshape(scores.shape[0], -1, count // parts) + first
        return _first(scores, parts) + found.reshape(scores.shape[0], -1)

    names = ("batch", _tokens(parts))
    return locally(run, (scores,), (names,), names)


def _tokens(parts: int) -> str | None:
    """Returns the name of an axis of tokens that never meet those of another device, or None."""
    return "length" if is_split("length", parts) else None


def _first(x: Array, parts: int) -> int | Array:
    """Returns the place, in its row, of the first token that this device holds."""
    return x.shape[1] * jax.lax.axis_index("context") if is_split("length", parts, True) else 0


def pick(x: Array, index: Int[Array, "B C"] | None) -> Array:
    """Returns the entries of `x` [B T] at `index`; None is all of them."""
    return x if index is None else jnp.take_along_axis(x, index, axis=1)


def take(
    x: Float[Array, "B T D"], index: Int[Array, "B C"] | None, parts: int = 1
) -> Float[Array, "B C D"]:
    """Returns the states of the tokens at `index`, chosen by parts; None is all of them."""
    if index is None:
        return x
    names = ("batch", _tokens(parts), None), ("batch", "length")
    run = lambda x, index: gather_tokens(x, index - _first(x, parts), is_sorted=True)
    return locally(run, (x, index), names, ("batch", "length", None))


def put(
    x: Float[Array, "B T D"],
    index: Int[Array, "B C"] | None,
    y: Float[Array, "B C D"],
    gate: Float[Array, "B C"],
    gating: Gating,
    parts: int = 1,
    is_live: Bool[Array, "B C"] | None = None,
) -> Float[Array, "B T D"]:
    """Returns all states after a recursion that turned those at `index`, in order, into `y`.

    The others, and those that are not live, stay as they are, bit for bit; see `update` for the
    rest.
    """
    if index is None:
        new = update(x, y, gate, gating)
        return new if is_live is None else jnp.where(is_live[..., None], new, x)
    if is_live is not None:
        still = take(x, index, parts) if gating in ("delta", "replace") else jnp.zeros_like(y)
        y = jnp.where(is_live[..., None], y, still)
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
    """Returns what one recursion reports, as means over the tokens that could go on.

    Args:
      logits: by which tokens were chosen, and gated.
      predicted: logits by which each token decides in causal mode, learning from what was chosen.
      chosen: the tokens that go on.
      active: those that could.
      score: how a logit becomes a gate.
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
