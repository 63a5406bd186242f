"""SwiGLU: a linear hidden layer, gated (Shazeer 2020, arXiv 2002.05202)."""

import dataclasses

import jax
from jaxtyping import Array, Float

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers.attention import Context
from recursia.layers.branch import Report
from recursia.layers.initial import Init
from recursia.layers.linear import dot
from recursia.params import Leaf, Spec


@dataclasses.dataclass(frozen=True)
class SwiGLU(FeedForward):
    """`(silu(h gate) * (x up)) down`, without biases.

    Attributes:
      mlp_dim: hidden width.
      init: scales of its matrices at the start; `by_depth` scales `up` too where the rule is
        "small", as in the code of Geiping et al. 2025 (arXiv 2502.05171).
    """

    mlp_dim: int
    init: Init = dataclasses.field(default_factory=Init)

    activation = staticmethod(jax.nn.silu)
    norm_name = "mlp"
    slots = ("mlp",)

    def __post_init__(self):
        ranges.at_least(1, self, "mlp_dim")

    def specs(self, width: int, num_steps: int) -> dict[str, Leaf]:
        """Returns gate, linear branch and output."""
        d, f = width, self.mlp_dim
        read, write = self.init.read(d, d), self.init.write(d, f, num_steps)
        up = self.init.write(d, d, num_steps) if self.init.rule == "small" else read
        return {
            "mlp": {
                "gate": Spec((d, f), ("embed", "mlp"), read),
                "up": Spec((d, f), ("embed", "mlp"), up),
                "down": Spec((f, d), ("mlp", "embed"), write),
            }
        }

    def apply(
        self,
        params: dict[str, Leaf],
        x: Float[Array, "B T D"],
        h: Float[Array, "B T D"],
        context: Context,
    ) -> tuple[Float[Array, "B T D"], Report]:
        """Returns what tokens write to the stream."""
        weights = params["mlp"]
        gate = dot(h, weights["gate"], "d,df->f")
        up = dot(x, weights["up"], "d,df->f")
        return dot(self.activation(gate) * up, weights["down"], "f,fd->d"), {}

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        return 6 * width * self.mlp_dim
