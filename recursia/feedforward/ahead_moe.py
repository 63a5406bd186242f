"""Mixture of experts whose routers all read the states of the first step: Read-ME.

Cai et al. 2024, arXiv 2410.19123, decouple the router from the layers: the experts of all steps
are known before any of them but the first runs. Here a token's first step hands on the normalised
states that its feed-forward read, and the router of every step reads them alone.
"""

import dataclasses

from recursia.feedforward.feedforward import Carried
from recursia.feedforward.glu_moe import GluMoE, Logits
from recursia.feedforward.lagged_moe import or_first
from recursia.layers.branch import States
from recursia.params import Params


@dataclasses.dataclass(frozen=True)
class AheadMoE(GluMoE):
    """Each token hands on the states of its first step."""

    def carried_dim(self, width: int) -> int:
        """Returns the width of the residual stream."""
        return width

    def logits(self, params: Params, h: States, carried: Carried) -> tuple[Logits, Carried]:
        """Returns the logits of experts, and the states of the first step."""
        first = self.handed_on(h, carried)
        return super().logits(params, first, carried)[0], first

    def handed_on(self, h: States, carried: Carried) -> Carried:
        """Returns the states of the first step, whatever its feed-forward."""
        return or_first(carried, h)
