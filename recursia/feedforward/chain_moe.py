"""Mixture of experts applied several times in one step: Chain-of-Experts.

Wang et al. 2025, arXiv 2506.18945: from the normalised state `y_0`, every pass chooses experts by
a router of its own and adds their outputs, `y_t = y_(t-1) + sum_e w_e E_e(y_(t-1)) + S(y_(t-1))`.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from recursia import ranges
from recursia.feedforward.feedforward import Carried
from recursia.feedforward.glu_moe import GluMoE
from recursia.layers import balance
from recursia.layers.attention import Context
from recursia.layers.branch import Losses, Report, States
from recursia.layers.linear import dot
from recursia.params import Params, Spec


@dataclasses.dataclass(frozen=True)
class ChainMoE(GluMoE):
    """Passes through one bank of experts; a pass reads the result of the one before.

    Attributes:
      num_passes: through the experts.
      has_own_routers: whether every pass has a router of its own.
      writes: to the residual stream: the "change" `y_C - y_0` that all passes make; or the "result"
        `y_C`, as released: with its outer residual in any block, and without it in the block
        'replacing_norm'.
    """

    num_passes: int = 2
    has_own_routers: bool = True
    writes: Literal["change", "result"] = "change"

    def __post_init__(self):
        super().__post_init__()
        ranges.at_least(1, self, "num_passes")

    def router_specs(self, width: int) -> Params:
        """Returns the routers of all passes."""
        count = self.num_passes if self.has_own_routers else 1
        shape, axes = (width, count, self.num_experts), ("embed", None, None)
        init = self.init.read(width, width)
        return {"router": Spec(shape, axes, init, is_matrix=False)}

    def step(
        self, params: Params, x: States, h: States, carried: Carried, context: Context
    ) -> tuple[States, Carried, Report]:
        """Returns what all passes write, from the states `h`, and statistics of every router."""
        y, used = h, []
        for number in range(self.num_passes):
            router = params["router"][:, number if self.has_own_routers else 0]
            logits = dot(y.astype(jnp.float32), router, "d,de->e")
            choice = self.chosen(params, logits)
            used.append(balance.usage(logits, choice.index, context.is_live, context.places))
            y = y + self.mixed(params, y, choice)
        axis = 1 if context.places is None else 2
        passes = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *used)  # [B *T C ...]
        return y if self.writes == "result" else y - h, carried, self.report(passes)

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns the load balancing loss summed over passes, each by itself."""
        losses, metrics = super().losses(reports)
        return {name: self.num_passes * loss for name, loss in losses.items()}, metrics

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        return self.num_passes * super().forward_flops(width)
