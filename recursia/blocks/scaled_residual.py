"""Pre-norm with learned factors of stream and branch, and a thin MLP after the feed-forward.

The block of Sliced Recursive Transformers (SReT: Shen et al. 2021, arXiv 2111.05297):

    x = a1 x + a2 mixer(norm(x))
    x = a3 x + a4 feedforward(norm(x))
    x = b1 x + b2 thin(norm(x))

The factors of mixer and feed-forward are the slot `residual`, those of the thin MLP the slot
`thin_residual`, and its norm and matrices the slot `thin_mlp`. In the published model a block
recurs, and each time has a thin MLP of its own: `varies` makes its slots private.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from recursia import ranges
from recursia.blocks.block import Norm
from recursia.blocks.pre_norm import PreNorm
from recursia.feedforward.gelu import GELU
from recursia.layers import norm as norms
from recursia.layers.attention import Context
from recursia.layers.branch import Report, States
from recursia.layers.past import Made, Source
from recursia.params import Leaf, Params, Spec, ones


@dataclasses.dataclass(frozen=True)
class ScaledResidual(PreNorm):
    """A norm before each branch, and a weighted sum after it; factors start at 1.

    Attributes:
      thin_ratio: hidden width of the thin MLP over that of the residual stream; 0 has none.
    """

    is_additive = False

    thin_ratio: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        ranges.between(0, ranges.LARGEST // self.embed_dim, self, "thin_ratio")

    @property
    def _thin(self) -> GELU | None:
        width = round(self.thin_ratio * self.embed_dim)
        return GELU(width) if width else None

    @property
    def slots(self) -> tuple[str, ...]:
        """Those of the branches, their factors, and the thin MLP with its own."""
        thin = () if self._thin is None else ("thin_mlp", "thin_residual")
        return (*super().slots, "residual", *thin)

    @property
    def exact(self) -> tuple[str, ...]:
        """Those of the branches, and factors, whose rounding error all channels would share."""
        return (*super().exact, *(slot for slot in self.slots if slot.endswith("residual")))

    def specs(self, num_steps: int) -> Params:
        """Returns a tree of specs for each slot."""
        factors = Spec((2,), (None,), ones, is_decayed=False)
        added: Params = {"residual": dict.fromkeys(self.norm_names, factors)}
        if self._thin is not None:
            weights = self._thin.specs(self.embed_dim, num_steps)["mlp"]
            norm = norms.specs(self.norm, self.embed_dim)
            added |= {"thin_mlp": {"norm": norm, **weights}, "thin_residual": factors}
        return {**super().specs(num_steps), **added}

    def joined(self, params: Params, x: Array, y: Array, name: str, norm: Norm) -> Array:
        """Returns the weighted sum."""
        return _sum(params["residual"][name], x, y)

    def apply(
        self,
        params: Params,
        x: States,
        context: Context,
        source: Source | None = None,
        memory: States | None = None,
    ) -> tuple[States, Made | None, Report]:
        """Applies the branches, and then the thin MLP."""
        x, keys_values, report = super().apply(params, x, context, source, memory)
        if self._thin is not None:
            weights = params["thin_mlp"]
            h = norms.normalise(self.states(x), weights["norm"], self.norm_eps)
            y, _ = self._thin.apply({"mlp": weights}, h, h, context)
            x = self.renewed(x, _sum(params["thin_residual"], self.states(x), y))
        return x, keys_values, report

    def forward_flops(self, keys: int | float, is_reading: bool) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token."""
        thin = 0 if self._thin is None else self._thin.forward_flops(self.embed_dim)
        return super().forward_flops(keys, is_reading) + thin


def _sum(factors: Leaf, x: Float[Array, "B T D"], y: Float[Array, "B T D"]) -> Array:
    """Returns `factors[0] x + factors[1] y`, summed in float32."""
    exact = factors[0] * x.astype(jnp.float32) + factors[1] * y.astype(jnp.float32)
    return exact.astype(x.dtype)
