"""Mixture of experts whose router is recurrent across depth: RMoE.

Qiu et al. 2024, arXiv 2408.06793: `z = h W_in`, `g = GRU(z, g_before)`, logits `g W_out`, where
`g_before` is the state of the same token's last step, zero in its first. Share the slot
"router_cell" across all steps (`varies.router_cell = "one"`), as published; "router" is of a step.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from recursia import ranges
from recursia.feedforward.feedforward import Carried
from recursia.feedforward.glu_moe import GluMoE, Logits
from recursia.layers import balance
from recursia.layers.branch import Losses, Report, States
from recursia.layers.initial import uniform
from recursia.layers.linear import dot
from recursia.params import Params, Spec


@dataclasses.dataclass(frozen=True)
class RecurrentMoE(GluMoE):
    """Each token's router has a state, which one step hands on to the next.

    The load balancing loss takes the tokens of all steps together, as the released code does; it is
    `top_k` where all experts are used equally.

    Attributes:
      router_dim: width of the router's state.
    """

    router_dim: int = 128
    is_renormalised: bool = True

    def __post_init__(self):
        super().__post_init__()
        ranges.at_least(1, self, "router_dim")

    @property
    def slots(self) -> tuple[str, ...]:
        """Those of any such mixture, and the recurrent cell."""
        return (*super().slots, "router_cell")

    @property
    def exact(self) -> tuple[str, ...]:
        """Router and cell: a rounded logit would choose another expert."""
        return (*super().exact, "router_cell")

    def carried_dim(self, width: int) -> int:
        """Returns the width of the router's state."""
        return self.router_dim

    def router_specs(self, width: int) -> Params:
        """Returns the layers before and after the cell, and the cell: gates r, z and n."""
        p, init = self.router_dim, uniform(self.router_dim**-0.5)
        matrix = lambda n, m, axis: Spec(
            (n, m), (axis, None), self.init.read(width, n), is_matrix=False
        )
        gates = Spec((p, 3, p), (None, None, None), init, is_matrix=False)
        bias = Spec((3, p), (None, None), init, is_decayed=False, is_matrix=False)
        return {
            "router": {"into": matrix(width, p, "embed"), "out": matrix(p, self.num_experts, None)},
            "router_cell": {
                "input": gates,
                "state": gates,
                "input_bias": bias,
                "state_bias": bias,
            },
        }

    def logits(self, params: Params, h: States, carried: Carried) -> tuple[Logits, Carried]:
        """Returns the logits of experts, and the router's new state."""
        z = dot(h.astype(jnp.float32), params["router"]["into"], "d,dp->p")
        state = gru(params["router_cell"], z, carried.astype(jnp.float32))
        return dot(state, params["router"]["out"], "p,pe->e"), state

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns the load balancing loss of the tokens of all steps together."""
        used = jax.tree.map(lambda leaf: leaf.sum(0), reports["router"])
        loss = balance.switch_loss if self.balance_over == "batch" else balance.sequence_switch_loss
        unevenness = loss(used)
        losses = {"expert_balance": self.balance_loss_weight * self.top_k * unevenness}
        return losses, {"expert_unevenness": unevenness, **self.shares(reports)}

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        routing = 2 * self.router_dim * (width + 6 * self.router_dim + self.num_experts)
        return self.mixing_flops(width) + routing


def gru(weights: Params, x: Array, state: Array) -> Array:
    """Returns the new state of a gated recurrent unit (Cho et al. 2014, arXiv 1406.1078).

    Args:
      weights: of the gates that reset, update and propose, along the axis before the last.
      x: its input [*B P].
      state: before [*B P].
    """
    reads = dot(x, weights["input"], "p,pgq->gq") + weights["input_bias"]
    keeps = dot(state, weights["state"], "p,pgq->gq") + weights["state_bias"]
    reset, update = jnp.moveaxis(jax.nn.sigmoid(reads + keeps)[..., :2, :], -2, 0)
    proposed = jnp.tanh(reads[..., 2, :] + reset * keeps[..., 2, :])
    return (1 - update) * proposed + update * state
