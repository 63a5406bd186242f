"""Mixture of experts: the settings, weights and cost that its feed-forwards have in common."""

import dataclasses

from recursia import ranges
from recursia.layers.branch import Branch
from recursia.params import Initializer, Spec


@dataclasses.dataclass(frozen=True)
class MixtureOfExperts(Branch):
    """Expert MLPs with one hidden layer; a router picks each token's top-k.

    Attributes:
      num_experts: experts of the layer.
      top_k: experts that a token takes.
      expert_dim: hidden width of an expert.
    """

    num_experts: int
    top_k: int
    expert_dim: int

    norm_name = "experts"
    slots = ("experts", "router")
    exact = ("router",)  # a rounded logit would choose another expert

    def __post_init__(self):
        ranges.at_least(1, self, "num_experts", "expert_dim")
        ranges.choice(self, "top_k", "num_experts")

    def matrices(self, width: int, up: Initializer, down: Initializer) -> dict[str, Spec]:
        """Returns the specs of both matrices of every expert."""
        e, d, m = self.num_experts, width, self.expert_dim
        return {
            "up": Spec((e, d, m), ("experts", "embed", "mlp"), up),
            "down": Spec((e, m, d), ("experts", "mlp", "embed"), down),
        }

    def linear_router(self, width: int, init: Initializer) -> Spec:
        """Returns the spec of a linear router."""
        return Spec((width, self.num_experts), ("embed", None), init, is_matrix=False)

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token, linear router included."""
        return 4 * self.top_k * width * self.expert_dim + 2 * width * self.num_experts
