"""Sigma-MoE: many small experts with sigmoid gates (Csordás et al. 2023, arXiv 2310.10837).

As in MoEUT (Csordás et al. 2024, arXiv 2405.16039).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers import balance, experts
from recursia.layers.attention import Context
from recursia.layers.branch import Losses, Report
from recursia.layers.linear import dot
from recursia.params import Leaf, Spec, normal


@dataclasses.dataclass(frozen=True)
class SigmaMoE(FeedForward):
    """ReLU experts without biases; variances at the start fall with the effective depth.

    Attributes:
      num_experts: of the layer.
      top_k: of them, how many a token takes.
      expert_dim: hidden width of each.
      entropy_weight: of the loss that spreads a sequence over the experts.
    """

    num_experts: int
    top_k: int
    expert_dim: int = 128
    entropy_weight: float = 0.01

    norm_name = "experts"
    slots = ("experts", "router")
    exact = ("router",)  # a rounded logit would choose another expert

    def __post_init__(self):
        ranges.at_least(1, self, "num_experts", "expert_dim")
        ranges.choice(self, "top_k", "num_experts")
        ranges.at_least(0, self, "entropy_weight")

    def specs(self, width: int, num_steps: int) -> dict[str, Leaf]:
        """Returns the experts and their router."""
        d, e, m = width, self.num_experts, self.expert_dim
        scale = math.sqrt(2 / num_steps)
        # The scale of `down` is that of all experts together, not of the few that a token takes.
        std, std_down = scale / math.sqrt(d), scale / math.sqrt(e * m)
        alike = experts.alike(std, is_by_expert=False)
        return {
            "experts": {
                "up": Spec((e, d, m), ("experts", "embed", "mlp"), normal(std)),
                "down": Spec((e, m, d), ("experts", "mlp", "embed"), normal(std_down)),
            },
            "router": Spec((d, e), ("embed", None), alike, is_matrix=False),
        }

    def apply(
        self,
        params: dict[str, Leaf],
        x: Float[Array, "B T D"],
        h: Float[Array, "B T D"],
        context: Context,
    ) -> tuple[Float[Array, "B T D"], Report]:
        """Returns what the experts that `h` chooses make of `x`, and how they were used."""
        logits = dot(h.astype(jnp.float32), params["router"], "d,de->e")
        choice = experts.choose(logits, self.top_k, score="sigmoid", is_renormalised=False)
        up, down = params["experts"]["up"], params["experts"]["down"]
        report = {"router": balance.usage(logits, choice.index, context.is_live)}
        return experts.expert_mlp(x, choice, up, down, jax.nn.relu), report

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns minus the entropy of each sequence's use of experts, and how even that is.

        The probabilities are softmax though the gates are sigmoid, and nothing else uses them.
        """
        used = reports["router"]
        loss = self.entropy_weight * jax.vmap(balance.sequence_loss)(used).sum()
        return {"expert_entropy": loss}, {"expert_usage": balance.evenness(used)}

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        return 4 * self.top_k * width * self.expert_dim + 2 * width * self.num_experts
