"""A linear router: each token's top-k experts, and the statistics for load balancing losses."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia.layers.attention import Context
from recursia.layers.balance import Usage, usage
from recursia.layers.branch import States
from recursia.layers.experts import Choice, choose
from recursia.layers.linear import Weight, dot


def route(
    weight: Float[Array, "D *N E"] | Weight,
    h: States,
    top_k: int,
    context: Context,
    *,
    score: Literal["sigmoid", "softmax"],
    is_renormalised: bool = False,
    einsum: str = "d,de->e",
) -> tuple[Choice, Usage]:
    """Returns each token's top-k experts and the router's statistics; logits are float32.

    Args:
      weight: the router's matrix.
      h: the states that it reads.
      top_k: experts for each token.
      context: which tokens enter the statistics.
      score: as in `choose`.
      is_renormalised: as in `choose`.
      einsum: "d,dne->ne" for a router with a choice in each head.
    """
    logits = dot(h.astype(jnp.float32), weight, einsum)
    choice = choose(logits, top_k, score=score, is_renormalised=is_renormalised)
    return choice, usage(logits, choice.index, context.is_live, context.places)
