"""Mixture of experts whose router reads what the last step's feed-forward read: Megrez2.

Li et al. 2025, arXiv 2507.17728: a step's experts are known one step ahead. The router is the
step's own, as in the released code; in a token's first step it reads the states of that step.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from recursia.feedforward.feedforward import Carried
from recursia.feedforward.glu_moe import GluMoE, Logits
from recursia.layers.branch import States
from recursia.params import Params


@dataclasses.dataclass(frozen=True)
class LaggedMoE(GluMoE):
    """Each token hands on the normalised states that its feed-forward read."""

    def carried_dim(self, width: int) -> int:
        """Returns the width of the residual stream."""
        return width

    def logits(self, params: Params, h: States, carried: Carried) -> tuple[Logits, Carried]:
        """Returns the logits of experts, and the states of this step."""
        before = or_first(carried, h)
        return super().logits(params, before, carried)[0], h

    def handed_on(self, h: States, carried: Carried) -> Carried:
        """Returns the states that the other feed-forward read."""
        return h


def or_first(carried: Carried, h: States) -> Array:
    """Returns what a token's last step handed on, or `h` where none did: where it is all zero."""
    return jnp.where((carried != 0).any(-1, keepdims=True), carried, h)
