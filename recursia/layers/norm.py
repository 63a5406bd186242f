"""Root-mean-square and layer normalisation; the tree of weights says which."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia.params import Spec, ones

Kind = Literal["rms", "layer", "unbiased_layer", "unscaled"]
zeros = jax.nn.initializers.zeros


def specs(kind: Kind, embed_dim: int) -> Spec | dict[str, Spec]:
    """Returns the specs of a normalisation's weights; "unscaled" has none."""
    vector = lambda init: Spec((embed_dim,), (None,), init, is_decayed=False)
    match kind:
        case "rms":
            return vector(ones)
        case "layer":
            return {"scale": vector(ones), "bias": vector(zeros)}
        case "unbiased_layer":
            return {"scale": vector(ones)}
        case "unscaled":
            return {}


def normalise(
    x: Float[Array, "*B D"], weights: Array | dict[str, Array], eps: float
) -> Float[Array, "*B D"]:
    """Returns `x` normalised; its weights, a tree of `specs`, say by which normalisation."""
    if not isinstance(weights, dict):
        return rms_norm(x, weights, eps)
    if not weights:
        return rms_norm(x, jnp.ones((), x.dtype), eps)
    y = layer_norm(x, weights["scale"], eps)
    return y + weights["bias"] if "bias" in weights else y


def rms_norm(
    x: Float[Array, "*B D"], scale: Float[Array, "..."], eps: float
) -> Float[Array, "*B D"]:
    """Root-mean-square normalisation in float32 (Zhang & Sennrich 2019, arXiv 1910.07467).

    The normalised value is cast to the dtype of `x` before the scale multiplies it, as Llama does.
    """
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale


def layer_norm(
    x: Float[Array, "*B D"], scale: Float[Array, "D"], eps: float
) -> Float[Array, "*B D"]:
    """Layer normalisation in float32 (Ba et al. 2016, arXiv 1607.06450), without a bias."""
    wide = x.astype(jnp.float32)
    wide -= wide.mean(axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale
