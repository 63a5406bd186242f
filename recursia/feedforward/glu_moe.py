"""Mixture of gated linear experts, some of them always on.

Experts as in DeepSeekMoE (Dai et al. 2024, arXiv 2401.06066): `silu(x gate) * (x up)`, then `down`.
Routers that read more than a step's own states are subclasses, one file each.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.feedforward.feedforward import Carried, FeedForward
from recursia.layers import balance, experts
from recursia.layers.attention import Context
from recursia.layers.branch import Losses, Report, States
from recursia.layers.initial import Init
from recursia.layers.linear import dot
from recursia.layers.moe import MixtureOfExperts
from recursia.layers.norm import zeros
from recursia.params import Initializer, Params, Spec

Logits = Float[Array, "B T *N E"]


@dataclasses.dataclass(frozen=True)
class GluMoE(MixtureOfExperts, FeedForward):
    """Experts without biases; a linear router reads the step's own states.

    Attributes:
      shared_dim: hidden width of the experts that every token takes, all together; 0 has none.
      is_gated: whether experts have a gate; without one they are `silu(x up) down`.
      score: what an expert is chosen by and weighted with: "softmax" over experts, or "sigmoid".
      is_renormalised: whether the weights of a token's experts are divided by their sum.
      scale: factor of the weights of the experts that are chosen.
      has_selection_bias: whether a bias is added to the scores by which experts are chosen, and to
        no weight (Wang et al. 2024, arXiv 2408.15664); it gets no gradient, but follows the use of
        its expert after each update.
      bias_rate: change of that bias in each update, towards an equal share of the choices.
      balance_loss_weight: of the load balancing loss.
      balance_over: what that loss balances: each "batch", or each "sequence" by itself.
      init: initialisation of the matrices.
    """

    shared_dim: int = 0
    is_gated: bool = True
    score: Literal["softmax", "sigmoid"] = "softmax"
    is_renormalised: bool = False
    scale: float = 1.0
    has_selection_bias: bool = False
    bias_rate: float = 0.001
    balance_loss_weight: float = 0.01
    balance_over: Literal["batch", "sequence"] = "batch"
    init: Init = dataclasses.field(default_factory=Init)

    def __post_init__(self):
        super().__post_init__()
        ranges.at_least(0, self, "shared_dim", "bias_rate", "balance_loss_weight")
        ranges.above(0, self, "scale")

    @property
    def slots(self) -> tuple[str, ...]:
        """Experts and router, and the experts that are always on."""
        own = MixtureOfExperts.slots
        own += ("selection_bias",) if self.has_selection_bias else ()
        return (*own, "shared_experts") if self.shared_dim else own

    @property
    def followers(self) -> tuple[str, ...]:
        """The bias by which experts are chosen."""
        return ("selection_bias",) if self.has_selection_bias and self.bias_rate else ()

    @property
    def exact(self) -> tuple[str, ...]:
        """The router: a rounded logit would choose another expert."""
        return ("router", "selection_bias") if self.has_selection_bias else ("router",)

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns the experts, those that are always on, and the router."""
        d, f = width, self.shared_dim
        read = self.init.read(d, d)
        write = lambda inputs: self.init.write(d, inputs, num_steps)
        bias = Spec((self.num_experts,), (None,), zeros, is_decayed=False, is_matrix=False)
        return {
            "experts": self.matrices(d, read, write(self.expert_dim)),
            **self.router_specs(width),
            **({"selection_bias": bias} if self.has_selection_bias else {}),
            **({"shared_experts": self.dense_matrices(d, f, read, write(f))} if f else {}),
        }

    def matrices(self, width: int, up: Initializer, down: Initializer) -> dict[str, Spec]:
        """Returns the specs of all matrices of every expert."""
        both = super().matrices(width, up, down)
        return {"gate": both["up"], **both} if self.is_gated else both

    def activation(self, x: Array) -> Array:
        """Returns SiLU."""
        return jax.nn.silu(x)

    def router_specs(self, width: int) -> Params:
        """Returns the slots of the router."""
        return {"router": self.linear_router(width, self.init.read(width, width))}

    def logits(self, params: Params, h: States, carried: Carried) -> tuple[Logits, Carried]:
        """Returns the logits of experts, and what the token hands on, both in float32.

        Args:
          params: of the layer.
          h: states that routers read.
          carried: what the token's last step handed on.
        """
        return dot(h.astype(jnp.float32), params["router"], "d,de->e"), carried

    def chosen(self, params: Params, logits: Logits) -> experts.Choice:
        """Returns each token's experts and their weights."""
        choice = experts.choose(
            logits,
            self.top_k,
            score=self.score,
            is_renormalised=self.is_renormalised,
            bias=params.get("selection_bias"),
        )
        return dataclasses.replace(choice, weight=self.scale * choice.weight)

    def mixed(self, params: Params, x: States, choice: experts.Choice) -> States:
        """Returns the sum of the outputs of chosen experts and those that are always on."""
        y = self.routed(params["experts"], x, choice)
        return y + self.dense(params["shared_experts"], x) if self.shared_dim else y

    def step(
        self, params: Params, x: States, h: States, carried: Carried, context: Context
    ) -> tuple[States, Carried, Report]:
        """Returns the outputs for `x` of the experts that are chosen, and router statistics."""
        logits, carried = self.logits(params, h, carried)
        choice = self.chosen(params, logits)
        used = balance.usage(logits, choice.index, context.is_live, context.places)
        return self.mixed(params, x, choice), carried, self.report(used)

    def report(self, used: balance.Usage) -> Report:
        """Returns statistics of routers, also by entry of what follows them."""
        return {"router": used, **dict.fromkeys(self.followers, used.taken)}

    def apply(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[States, Report]:
        """Returns what `step` does in a token's first step."""
        nothing = jnp.zeros((*h.shape[:-1], self.carried_dim(h.shape[-1])), h.dtype)
        y, _, report = self.step(params, x, h, nothing, context)
        return y, report

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns the load balancing loss of each router over all its uses."""
        unevenness = balance.unevenness(reports["router"], self.balance_over)
        losses = {"expert_balance": self.balance_loss_weight * unevenness.sum()}
        return losses, {"expert_unevenness": unevenness.mean(), **self.shares(reports)}

    def shares(self, reports: Report) -> Losses:
        """Returns each expert's share of the choices, by entry of the biases that follow it."""
        found = [balance.shares(reports[slot]) for slot in self.followers]
        return {f"expert_share_{at}": share for each in found for at, share in enumerate(each)}

    def after_step(self, bank: Array, metrics: dict[str, Array]) -> Array:
        """Returns biases moved towards an equal share of the choices."""
        shares = [metrics[f"expert_share_{entry}"] for entry in range(len(bank))]
        return balance.evened(bank, jnp.stack(shares), self.bias_rate)

    def batch_losses(self) -> tuple[str, ...]:
        """Returns the weight of the load balancing loss, if it is one of means over the batch."""
        is_batch = self.balance_over == "batch" and self.balance_loss_weight
        return ("balance_loss_weight",) if is_batch else ()

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        return self.mixing_flops(width) + 2 * width * self.num_experts

    def mixing_flops(self, width: int) -> int | float:
        """Returns those of a token's experts, without those of its router."""
        return self.hidden_flops(width, self.top_k * self.expert_dim + self.shared_dim)

    def hidden_flops(self, width: int, hidden: int) -> int:
        """Returns the FLOPs of one token in experts that have so many hidden units together."""
        return (6 if self.is_gated else 4) * width * hidden
