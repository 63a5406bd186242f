"""Normalisation; what its weights are tells which."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia.params import Spec, ones

Kind = Literal["rms", "layer", "unscaled"]
zeros = jax.nn.initializers.zeros


def specs(kind: Kind, embed_dim: int) -> Spec | dict[str, Spec]:
    """Returns the weights of a root-mean-square or layer normalisation; "unscaled" has none."""
    match kind:
        case "rms":
            return rms_specs(embed_dim)
        case "layer":
            return layer_specs(embed_dim)
    return {}


def rms_specs(embed_dim: int) -> Spec:
    """Returns the weight of a root-mean-square normalisation."""
    return Spec((embed_dim,), (None,), ones, is_decayed=False)


def layer_specs(embed_dim: int) -> dict[str, Spec]:
    """Returns the weights of a layer normalisation."""
    scale = rms_specs(embed_dim)
    return {"scale": scale, "bias": Spec((embed_dim,), (None,), zeros, is_decayed=False)}


def normalise(x: Float[Array, "*B D"], weights: Any, eps: float) -> Float[Array, "*B D"]:
    """Returns the normalisation that has these weights, of `specs`."""
    if isinstance(weights, dict) and not weights:
        return rms_norm(x, jnp.ones((), x.dtype), eps)
    if isinstance(weights, dict):
        return layer_norm(x, weights["scale"], weights["bias"], eps)
    return rms_norm(x, weights, eps)


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
    x: Float[Array, "*B D"], scale: Float[Array, "D"], bias: Float[Array, "D"], eps: float
) -> Float[Array, "*B D"]:
    """Layer normalisation in float32 (Ba et al. 2016, arXiv 1607.06450)."""
    wide = x.astype(jnp.float32)
    wide -= wide.mean(axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale + bias
