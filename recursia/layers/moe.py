"""Mixture of experts: what its feed-forwards have in common, and lend to other layers."""

import abc
import dataclasses

from jaxtyping import Array

from recursia import ranges
from recursia.layers.branch import Branch, States
from recursia.layers.experts import Choice, expert_mlp
from recursia.layers.linear import dot, dot_of
from recursia.params import Initializer, Params, Spec


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

    def dense_matrices(
        self, width: int, hidden: int, up: Initializer, down: Initializer
    ) -> dict[str, Spec]:
        """Returns the specs of an expert that every token takes, with `hidden` units."""
        bank = dataclasses.replace(self, expert_dim=hidden).matrices(width, up, down)
        one = lambda spec: dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:])
        return {name: one(spec) for name, spec in bank.items()}

    @abc.abstractmethod
    def activation(self, x: Array) -> Array:
        """Returns the nonlinearity of hidden units."""

    def routed(self, bank: Params, x: Array, choice: Choice) -> Array:
        """Returns the weighted sum of the outputs for `x` [*L D] of the experts that are chosen.

        Args:
          bank: the slot "experts".
          x: states, of the feed-forward or of any layer that uses its experts.
          choice: of each state [*L k].
        """
        return expert_mlp(x, choice, **bank, activation=self.activation)

    def dense(self, weights: Params, x: States) -> States:
        """Returns the outputs for `x` of an expert that every token takes; see `dense_matrices`."""
        up = dot(x, weights["up"], "d,df->f")
        if "gate" not in weights:
            return dot_of(self.activation, (up,), weights["down"], "f,fd->d")
        gated = lambda gate, up: self.activation(gate) * up
        gate = dot(x, weights["gate"], "d,df->f")
        return dot_of(gated, (gate, up), weights["down"], "f,fd->d")

    def linear_router(self, width: int, init: Initializer) -> Spec:
        """Returns the spec of a linear router."""
        return Spec((width, self.num_experts), ("embed", None), init, is_matrix=False)

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token, linear router included."""
        return self.hidden_flops(width, self.top_k * self.expert_dim) + 2 * width * self.num_experts

    def hidden_flops(self, width: int, hidden: int) -> int:
        """Returns the FLOPs of one token in experts that have so many hidden units together."""
        return 4 * width * hidden
