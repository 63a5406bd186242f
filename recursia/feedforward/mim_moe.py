"""Experts evened out by mutual information (Tan et al. 2023, arXiv 2310.07096).

Where the paper and the released code differ is said at the option.
"""

import dataclasses
import functools

import jax
from jaxtyping import Array, Float

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers import router
from recursia.layers.attention import Context
from recursia.layers.branch import Losses, Report
from recursia.layers.experts import expert_mlp
from recursia.layers.initial import uniform
from recursia.params import Leaf, Spec


@dataclasses.dataclass(frozen=True)
class MimMoE(FeedForward):
    """GELU experts with biases; gates are softmax over those taken, of a router with hidden layer.

    Attributes:
      num_experts: of the layer.
      top_k: of them, how many a token takes.
      expert_dim: hidden width of each.
      mim_weight: of the mutual information between tokens and experts. Published as 0.1 of a loss
        that is summed over tokens, so far less of a mean one.
      mim_sign: "intended" adds H(expert | token) - H(expert), as in the paper; "released" adds
        their sum, as its code does, which makes tokens share a few experts.
    """

    num_experts: int
    top_k: int
    expert_dim: int
    mim_weight: float = 0.1
    mim_sign: router.Sign = "intended"

    norm_name = "mlp"
    slots = ("experts", "router")
    exact = ("router",)

    def __post_init__(self):
        ranges.at_least(1, self, "num_experts", "expert_dim")
        ranges.choice(self, "top_k", "num_experts")
        ranges.at_least(0, self, "mim_weight")

    def specs(self, width: int, num_steps: int) -> dict[str, Leaf]:
        """Returns the experts and their router."""
        d, e, m = width, self.num_experts, self.expert_dim
        bank = lambda taken, given, *axes: Spec(
            (e, taken, given), ("experts", *axes), uniform(1 / taken)
        )
        bias = lambda taken, given: Spec(
            (e, given), ("experts", None), uniform(taken**-0.5), is_decayed=False
        )
        return {
            "experts": {
                "up": bank(d, m, "embed", "mlp"),
                "up_bias": bias(d, m),
                "down": bank(m, d, "mlp", "embed"),
                "down_bias": bias(m, d),
            },
            "router": router.specs(d, e),
        }

    def apply(
        self,
        params: dict[str, Leaf],
        x: Float[Array, "B T D"],
        h: Float[Array, "B T D"],
        context: Context,
    ) -> tuple[Float[Array, "B T D"], Report]:
        """Returns what the experts that `h` chooses make of `x`, and how they were used."""
        choice, usage = router.route(params["router"], h, self.top_k, context)
        gelu = functools.partial(jax.nn.gelu, approximate=False)
        return expert_mlp(x, choice, activation=gelu, **params["experts"]), {"router": usage}

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns the loss of the router, and the mean entropies it is made of, in nats."""
        loss, metrics = router.mim(reports, self.mim_sign)
        return {"mim": self.mim_weight * loss}, metrics

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the weight of the mutual information, a function of means over the batch."""
        return ("mim_weight",) if self.mim_weight else ()

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        return 4 * self.top_k * width * self.expert_dim + router.flops(width, self.num_experts)
