"""A router with a hidden layer and a mutual-information load balancing loss.

Tan et al. 2023, arXiv 2310.07096. The released code draws some of a token's experts at random while
training (`sample_topk`, off in its base model) and has dropout; neither is here.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia.layers import router
from recursia.layers.attention import Context
from recursia.layers.balance import Usage, information
from recursia.layers.branch import States
from recursia.layers.experts import Choice
from recursia.layers.initial import uniform
from recursia.layers.linear import dot
from recursia.params import Spec

Sign = Literal["intended", "released"]


def specs(width: int, num_experts: int) -> dict[str, Spec]:
    """Returns a hidden layer as wide as the residual stream, and the logits of experts."""
    init = uniform(width**-0.5)
    return {
        "hidden": Spec((width, width), ("embed", None), init, is_matrix=False),
        "bias": Spec((width,), (None,), init, is_decayed=False),
        "out": Spec((width, num_experts), ("embed", None), init, is_matrix=False),
    }


def route(
    weights: dict[str, Array], h: States, top_k: int, context: Context
) -> tuple[Choice, Usage]:
    """Returns each token's top-k experts and the router's statistics; padding has weight 0."""
    h = jnp.tanh(dot(h.astype(jnp.float32), weights["hidden"], "d,de->e") + weights["bias"])
    choice, used = router.route(
        weights["out"], h, top_k, context, score="softmax", is_renormalised=True
    )
    if context.is_live is not None:
        live = context.is_live[..., None]
        choice = dataclasses.replace(choice, weight=jnp.where(live, choice.weight, 0.0))
    return choice, used


def loss(
    reports: dict[str, Usage], sign: Sign
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns minus the mutual information of tokens and experts in nats, and its two entropies.

    Args:
      reports: statistics of routers by slot, bank entries along the leading axis; the loss is a sum
        over entries.
      sign: "intended" subtracts the entropy of experts from that of experts given a token,
        "released" adds it.
    """
    total, metrics = jnp.zeros(()), {}
    for slot, used in reports.items():
        conditional, marginal = jax.vmap(information)(used)  # [entries]
        total += (conditional + (-1 if sign == "intended" else 1) * marginal).sum()
        metrics[f"{slot}_entropy_given_token"] = conditional.mean()
        metrics[f"{slot}_entropy"] = marginal.mean()
    return total, metrics


def flops(width: int, num_experts: int) -> int:
    """Returns the forward FLOPs of one token."""
    return 2 * width * width + 2 * width * num_experts
