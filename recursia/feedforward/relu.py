"""MLP with one hidden layer of ReLU and biases (Vaswani et al. 2017, arXiv 1706.03762)."""

import dataclasses

import jax

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward, nearest
from recursia.layers.attention import Context
from recursia.layers.branch import Report, States
from recursia.layers.initial import Init
from recursia.layers.linear import dot, dot_of
from recursia.layers.norm import zeros
from recursia.params import Params, Spec


@dataclasses.dataclass(frozen=True)
class ReLU(FeedForward):
    """`relu(h up + up_bias) down + down_bias`, of normalised states alone.

    Attributes:
      mlp_dim: hidden width.
      has_bias: whether both layers have biases.
      init: initialisation of the matrices.
    """

    mlp_dim: int
    has_bias: bool = True
    init: Init = dataclasses.field(default_factory=Init)

    activation = staticmethod(jax.nn.relu)
    norm_name = "mlp"
    slots = ("mlp",)

    def __post_init__(self):
        ranges.at_least(1, self, "mlp_dim")

    def narrowed(self, part: float, multiple: int) -> "ReLU":
        """Returns the layer with a part of its hidden units."""
        return dataclasses.replace(
            self, mlp_dim=nearest(part * self.mlp_dim, multiple, self.mlp_dim)
        )

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns both layers, with their biases if the settings have them."""
        d, f = width, self.mlp_dim
        bias = lambda width, axis: Spec((width,), (axis,), zeros, is_decayed=False)
        weights = {
            "up": Spec((d, f), ("embed", "mlp"), self.init.read(d, d)),
            "down": Spec((f, d), ("mlp", "embed"), self.init.write(d, f, num_steps)),
        }
        biases = {"up_bias": bias(f, "mlp"), "down_bias": bias(d, None)} if self.has_bias else {}
        return {"mlp": {**weights, **biases}}

    def apply(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[States, Report]:
        """Returns the writes to the residual stream."""
        weights = params["mlp"]
        up = dot(h, weights["up"], "d,df->f")
        if not self.has_bias:
            return dot_of(self.activation, (up,), weights["down"], "f,fd->d"), {}
        act = lambda up, bias: self.activation(up + bias)
        y = dot_of(act, (up, weights["up_bias"]), weights["down"], "f,fd->d")
        return y + weights["down_bias"], {}

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        return 4 * width * self.mlp_dim
