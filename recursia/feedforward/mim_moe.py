"""Mixture of experts with a mutual-information load balancing loss.

Tan et al. 2023, arXiv 2310.07096. Each option says where the paper and the released code differ.
"""

import dataclasses

import jax
from jaxtyping import Array

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers import mim_router
from recursia.layers.attention import Context
from recursia.layers.branch import Losses, Report, States
from recursia.layers.initial import uniform
from recursia.layers.moe import MixtureOfExperts
from recursia.params import Params, Spec


@dataclasses.dataclass(frozen=True)
class MimMoE(MixtureOfExperts, FeedForward):
    """GELU experts with biases; gates are the softmax of a two-layer router over the top-k.

    Attributes:
      mim_weight: of the mutual information between tokens and experts. Published as 0.1 of a loss
        that is summed over tokens, so far less than 0.1 of this mean over tokens.
      mim_sign: "intended" adds H(expert | token) - H(expert), as in the paper; "released" adds
        their sum, as the released code does, which makes tokens share a few experts.
    """

    mim_weight: float = 0.1
    mim_sign: mim_router.Sign = "intended"

    norm_name = "mlp"

    def __post_init__(self):
        super().__post_init__()
        ranges.at_least(0, self, "mim_weight")

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns the experts and their router."""
        d, e, m = width, self.num_experts, self.expert_dim
        bias = lambda inputs, outputs: Spec(
            (e, outputs), ("experts", None), uniform(inputs**-0.5), is_decayed=False
        )
        biases = {"up_bias": bias(d, m), "down_bias": bias(m, d)}
        return {
            "experts": self.matrices(d, uniform(1 / d), uniform(1 / m)) | biases,
            "router": mim_router.specs(d, e),
        }

    def apply(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[States, Report]:
        """Returns the outputs for `x` of the experts that `h` chooses, and router statistics."""
        choice, usage = mim_router.route(params["router"], h, self.top_k, context)
        return self.routed(params["experts"], x, choice), {"router": usage}

    def activation(self, x: Array) -> Array:
        """Returns GELU."""
        return jax.nn.gelu(x, approximate=False)

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns the mutual-information loss, and its two mean entropies in nats."""
        loss, metrics = mim_router.loss(reports, self.mim_sign)
        return {"mim": self.mim_weight * loss}, metrics

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the weight of the mutual information, a function of means over the batch."""
        return ("mim_weight",) if self.mim_weight else ()

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        routing = mim_router.flops(width, self.num_experts)
        return self.hidden_flops(width, self.top_k * self.expert_dim) + routing
