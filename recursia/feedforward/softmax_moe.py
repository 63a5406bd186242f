"""Mixture of experts with a softmax router and the load balancing loss of the Switch Transformer.

Fedus et al. 2021, arXiv 2101.03961, with top-k of any size; the layer of WideNet (Xue et al. 2021,
arXiv 2107.11817). With one expert it is an MLP with one hidden layer of GELU.
"""

import dataclasses

import jax
from jaxtyping import Array

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers import balance, experts, router
from recursia.layers.attention import Context
from recursia.layers.branch import Losses, Report, States
from recursia.layers.initial import Init
from recursia.layers.moe import MixtureOfExperts
from recursia.layers.norm import zeros
from recursia.params import Params, Spec


@dataclasses.dataclass(frozen=True)
class SoftmaxMoE(MixtureOfExperts, FeedForward):
    """GELU experts; the softmax probabilities of the top-k are their gates.

    Attributes:
      has_bias: whether both layers of each expert have biases.
      is_renormalised: whether the gates of a token's experts are divided by their sum: they are
        then the softmax of the top-k logits.
      capacity: an expert's most tokens in a row over its mean number; the expert adds nothing to
        tokens beyond it. The grouped product needs no bound, and with one the documents of a packed
        row share an expert's capacity; None has none.
      balance_loss_weight: of the load balancing loss.
      init: initialisation of the matrices.
    """

    has_bias: bool = False
    is_renormalised: bool = False
    capacity: float | None = None
    balance_loss_weight: float = 0.01
    init: Init = dataclasses.field(default_factory=Init)

    def __post_init__(self):
        super().__post_init__()
        ranges.above(0, self, *(("capacity",) if self.capacity is not None else ()))
        ranges.at_least(0, self, "balance_loss_weight")

    @property
    def is_incremental(self) -> bool:
        """Whether experts have room for all tokens: with a capacity it grows with the text."""
        return self.capacity is None

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns the experts and their router."""
        read = self.init.read(width, width)
        write = self.init.write(width, self.expert_dim, num_steps)
        bias = lambda outputs: Spec(
            (self.num_experts, outputs), ("experts", None), zeros, is_decayed=False
        )
        biases = {"up_bias": bias(self.expert_dim), "down_bias": bias(width)}
        return {
            "experts": self.matrices(width, read, write) | (biases if self.has_bias else {}),
            "router": self.linear_router(width, read),
        }

    def apply(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[States, Report]:
        """Returns the outputs for `x` of the experts that `h` chooses, and router statistics."""
        choice, usage = router.route(
            params["router"],
            h,
            self.top_k,
            context,
            score="softmax",
            is_renormalised=self.is_renormalised,
        )
        choice = experts.limit(choice, self.num_experts, self.capacity, context.is_live)
        return self.routed(params["experts"], x, choice), {"router": usage}

    def activation(self, x: Array) -> Array:
        """Returns GELU."""
        return jax.nn.gelu(x, approximate=False)

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns the load balancing loss of each router over all its uses in the batch."""
        unevenness = jax.vmap(balance.switch_loss)(reports["router"])
        losses = {"expert_balance": self.balance_loss_weight * unevenness.sum()}
        return losses, {"expert_unevenness": unevenness.mean()}

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the weight of the load balancing loss, a product of means over the batch."""
        return ("balance_loss_weight",) if self.balance_loss_weight else ()
