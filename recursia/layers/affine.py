"""Affine maps from one width to another: a matrix and a bias, and a norm after them."""

from jaxtyping import Array, Float

from recursia.layers import norm as norms
from recursia.layers.linear import dot
from recursia.params import Params, Spec, normal

Axes = tuple[str | None, str | None]


def specs(inputs: int, outputs: int, axes: Axes) -> Params:
    """Returns a matrix whose output starts as large as its input, and a bias of zeros."""
    return {
        "matrix": Spec((inputs, outputs), axes, normal(inputs**-0.5)),
        "bias": Spec((outputs,), (None,), norms.zeros, is_decayed=False),
    }


def apply(params: Params, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """Returns the map of `x`, whose dtype is that of the parameters."""
    return dot(x, params["matrix"], "i,io->o") + params["bias"]


def normed_specs(inputs: int, outputs: int, norm: norms.Kind) -> Params:
    """Returns a map and a norm of its output."""
    return {**specs(inputs, outputs, (None, "embed")), "norm": norms.specs(norm, outputs)}


def normed(params: Params, x: Float[Array, "*B I"], eps: float) -> Float[Array, "*B O"]:
    """Returns the map of `x`, normalised."""
    return norms.normalise(apply(params, x), params["norm"], eps)
