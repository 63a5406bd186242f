"""SwiGLU: a gated linear unit (Shazeer 2020, arXiv 2002.05202)."""

import dataclasses

import jax

from recursia import ranges
from recursia.feedforward.feedforward import FeedForward, nearest
from recursia.layers.attention import Context
from recursia.layers.branch import Report, States
from recursia.layers.initial import Init
from recursia.layers.linear import dot, dot_of
from recursia.params import Params, Spec


@dataclasses.dataclass(frozen=True)
class SwiGLU(FeedForward):
    """`(silu(h gate) * (x up)) down`, without biases.

    Attributes:
      mlp_dim: hidden width.
      init: initialisation of the matrices; `by_depth` scales `up` too where the rule is
        "small", as in the code of Geiping et al. 2025 (arXiv 2502.05171).
    """

    mlp_dim: int
    init: Init = dataclasses.field(default_factory=Init)

    activation = staticmethod(jax.nn.silu)
    norm_name = "mlp"
    slots = ("mlp",)

    def __post_init__(self):
        ranges.at_least(1, self, "mlp_dim")

    def narrowed(self, part: float, multiple: int) -> "SwiGLU":
        """Returns the layer with a part of its hidden units."""
        return dataclasses.replace(
            self, mlp_dim=nearest(part * self.mlp_dim, multiple, self.mlp_dim)
        )

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns the three matrices."""
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
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[States, Report]:
        """Returns the writes to the residual stream."""
        weights = params["mlp"]
        gate = dot(h, weights["gate"], "d,df->f")
        up = dot(x, weights["up"], "d,df->f")
        gated = lambda gate, up: self.activation(gate) * up
        return dot_of(gated, (gate, up), weights["down"], "f,fd->d"), {}

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        return 6 * width * self.mlp_dim
