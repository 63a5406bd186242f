"""Sigma-MoE: many small experts with sigmoid gates (Csordás et al. 2023, arXiv 2310.10837).

As in MoEUT (Csordás et al. 2024, arXiv 2405.16039).
"""

import dataclasses
import math

import jax
from jaxtyping import Array

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers import balance, experts, router
from recursia.layers.attention import Context
from recursia.layers.branch import Losses, Report, States
from recursia.layers.moe import MixtureOfExperts
from recursia.params import Params, normal


@dataclasses.dataclass(frozen=True)
class SigmaMoE(MixtureOfExperts, FeedForward):
    """ReLU experts without biases; initial variances fall with the effective depth.

    Attributes:
      entropy_weight: of the loss that spreads the tokens of a sequence over the experts.
    """

    expert_dim: int = 128
    entropy_weight: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        ranges.at_least(0, self, "entropy_weight")

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns the experts and their router."""
        scale = math.sqrt(2 / num_steps)
        # The fan-in of `down` counts all experts, not the few that a token takes.
        std, std_down = (scale / math.sqrt(n) for n in (width, self.num_experts * self.expert_dim))
        return {
            "experts": self.matrices(width, normal(std), normal(std_down)),
            "router": self.linear_router(width, experts.equal_norms(std, is_by_expert=False)),
        }

    def apply(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[States, Report]:
        """Returns the outputs for `x` of the experts that `h` chooses, and router statistics."""
        choice, usage = router.route(params["router"], h, self.top_k, context, score="sigmoid")
        return self.routed(params["experts"], x, choice), {"router": usage}

    def activation(self, x: Array) -> Array:
        """Returns ReLU."""
        return jax.nn.relu(x)

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns minus the entropy of each sequence's expert probabilities, and their evenness.

        These probabilities are a softmax, though the gates are sigmoids.
        """
        used = reports["router"]
        loss = self.entropy_weight * jax.vmap(balance.sequence_loss)(used).sum()
        return {"expert_entropy": loss}, {"expert_usage": balance.evenness(used)}
