"""A mixture of softmax experts with the balancing loss of Switch (Fedus et al. 2021).

arXiv 2101.03961, of which a token may take several experts; the layer of WideNet (Xue et al. 2021,
arXiv 2107.11817). With one expert it is one hidden layer of GELU.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers import balance, experts
from recursia.layers.attention import Context
from recursia.layers.branch import Losses, Report
from recursia.layers.initial import Init
from recursia.layers.linear import dot
from recursia.params import Leaf, Spec


@dataclasses.dataclass(frozen=True)
class SoftmaxMoE(FeedForward):
    """GELU experts without biases; the probabilities of those taken are their gates.

    Attributes:
      num_experts: of the layer.
      top_k: of them, how many a token takes.
      expert_dim: hidden width of each.
      capacity: places of an expert over its mean number of tokens in a row: those that come too
        late keep what attention gave them. The product of groups needs no bound, and with one the
        documents of a row see how full an expert is; None has none.
      balance_loss_weight: of the loss that makes experts taken alike.
      init: scales of its matrices at the start.
    """

    num_experts: int
    top_k: int
    expert_dim: int
    capacity: float | None = None
    balance_loss_weight: float = 0.01
    init: Init = dataclasses.field(default_factory=Init)

    norm_name = "experts"
    slots = ("experts", "router")
    exact = ("router",)  # a rounded logit would choose another expert

    def __post_init__(self):
        ranges.at_least(1, self, "num_experts", "expert_dim")
        ranges.choice(self, "top_k", "num_experts")
        ranges.above(0, self, *(("capacity",) if self.capacity is not None else ()))
        ranges.at_least(0, self, "balance_loss_weight")

    @property
    def is_incremental(self) -> bool:
        """Whether no expert turns tokens away: how many it takes grows with the text."""
        return self.capacity is None

    def specs(self, width: int, num_steps: int) -> dict[str, Leaf]:
        """Returns the experts and their router."""
        d, e, m = width, self.num_experts, self.expert_dim
        read, write = self.init.read(d, d), self.init.write(d, m, num_steps)
        return {
            "experts": {
                "up": Spec((e, d, m), ("experts", "embed", "mlp"), read),
                "down": Spec((e, m, d), ("experts", "mlp", "embed"), write),
            },
            "router": Spec((d, e), ("embed", None), read, is_matrix=False),
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
        choice = experts.choose(logits, self.top_k, score="softmax", is_renormalised=False)
        report = {"router": balance.usage(logits, choice.index, context.is_live)}
        choice = experts.limit(choice, self.num_experts, self.capacity, context.is_live)
        up, down = params["experts"]["up"], params["experts"]["down"]
        gelu = functools.partial(jax.nn.gelu, approximate=False)
        return experts.expert_mlp(x, choice, up, down, gelu), report

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns how unevenly each router's experts are taken, over all its uses in the batch."""
        unevenness = jax.vmap(balance.switch_loss)(reports["router"])
        found = {"expert_balance": self.balance_loss_weight * unevenness.sum()}
        return found, {"expert_unevenness": unevenness.mean()}

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the weight of the balancing loss, a product of means over the batch."""
        return ("balance_loss_weight",) if self.balance_loss_weight else ()

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        return 4 * self.top_k * width * self.expert_dim + 2 * width * self.num_experts
