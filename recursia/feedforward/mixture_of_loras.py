"""Mixture of LoRAs: experts that are one shared feed-forward plus a low-rank adapter each.

As in ModernALBERT: `y = sum_i p_i FF_i(h)`, where `FF_i` is the feed-forward with `W + scale A_i
B_i` for every matrix `W`, and `p` the softmax of a router over the top-k experts. Outputs are
mixed, not weights, as the feed-forward has a non-linearity between its matrices. Published for
encoders; this follows the published equation, without the authors' code.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recursia import params as parameters
from recursia import ranges
from recursia.feedforward.feedforward import FeedForward
from recursia.layers import balance, experts, router
from recursia.layers.attention import Context
from recursia.layers.branch import Losses, Report, States
from recursia.layers.linear import dot
from recursia.layers.norm import zeros
from recursia.params import Leaf, Params, Spec, normal


@dataclasses.dataclass(frozen=True)
class MixtureOfLoras(FeedForward):
    """Experts that are low-rank adapters, with `B` zero at the start.

    The feed-forward, the adapters and the router are slots that can be shared across depth each by
    itself: share the feed-forward alone, and each step has adapters of its own.

    Attributes:
      feedforward: what the adapters change; `kind` names a module of one slot, such as "swiglu".
      num_experts: experts of the layer.
      rank: of an adapter, at most the smaller side of the matrix.
      top_k: experts that a token takes; with 1 the router gets no gradient.
      scale: factor of the adapters; published as alpha over the rank.
      init_std: standard deviation of `A` and of the router at the start.
    """

    feedforward: FeedForward
    num_experts: int
    rank: int
    top_k: int = 2
    scale: float = 1.0
    init_std: float = 0.02

    def __post_init__(self):
        ranges.at_least(1, self, "num_experts", "rank")
        ranges.choice(self, "top_k", "num_experts")
        ranges.above(0, self, "scale")
        ranges.at_least(0, self, "init_std")
        if len(slots := self.feedforward.slots) > 1:
            raise ValueError(
                f"feedforward: got one with the slots {', '.join(slots)}, takes one of matrices "
                "alone, such as 'swiglu'"
            )

    @property
    def norm_name(self) -> str:
        """The norm of the feed-forward."""
        return self.feedforward.norm_name

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots of the feed-forward, and those of adapters and router."""
        return (*self.feedforward.slots, "lora_experts", "lora_router")

    @property
    def exact(self) -> tuple[str, ...]:
        """Those of the feed-forward and the router: a rounded logit would choose another expert."""
        return (*self.feedforward.exact, "lora_router")

    def specs(self, width: int, num_steps: int) -> Params:
        """Returns the feed-forward, adapters of each matrix by expert, and the router."""

        def adapter(spec: Spec) -> dict[str, Spec]:
            (inputs, outputs), (axis_in, axis_out) = spec.shape, spec.axes
            e, r = self.num_experts, self._rank(spec)
            return {
                "a": Spec((e, inputs, r), ("experts", axis_in, None), normal(self.init_std)),
                "b": Spec((e, r, outputs), ("experts", None, axis_out), zeros),
            }

        ((slot, tree),) = self.feedforward.specs(width, num_steps).items()
        matrices = _matrices(tree)
        products = lambda spec: 1 if spec.axes[0] == "embed" else self.top_k
        shared = {n: dataclasses.replace(s, products=products(s)) for n, s in matrices.items()}
        added = {
            "lora_experts": {name: adapter(spec) for name, spec in matrices.items()},
            "lora_router": Spec((width, self.num_experts), ("embed", None), normal(self.init_std)),
        }
        return {slot: {**tree, **shared}, **parameters.mark(added, is_matrix=False)}

    def apply(
        self, params: Params, x: States, h: States, context: Context
    ) -> tuple[States, Report]:
        """Returns the weighted mean of the outputs of the experts, and router statistics.

        Computed as the first expert's output plus the weighted differences of the others from it,
        so that adapters of zero leave the feed-forward's output bit for bit.
        """
        choice, usage = router.route(
            params["lora_router"], h, self.top_k, context, score="softmax", is_renormalised=True
        )
        (slot,) = self.feedforward.slots
        adapters = params["lora_experts"]
        bases = {name: _Memoised(params[slot][name]) for name in adapters}

        def output(index: Int[Array, "B T 1"]) -> States:
            adapted = {
                name: _Adapted(bases[name], **adapters[name], index=index, scale=self.scale)
                for name in adapters
            }
            weights = {slot: {**params[slot], **adapted}}
            return self.feedforward.apply(weights, x, h, context)[0].astype(jnp.float32)

        first, *others = (output(choice.index[..., i : i + 1]) for i in range(self.top_k))
        y = first
        for i, other in enumerate(others, start=1):
            y += choice.weight[..., i : i + 1] * (other - first)
        return y.astype(h.dtype), {"lora_router": usage}

    def losses(self, reports: Report) -> tuple[Losses, Losses]:
        """Returns no loss, and how evenly experts are used."""
        return {}, {"expert_usage": balance.evenness(reports["lora_router"])}

    def forward_flops(self, width: int) -> int | float:
        """Returns the forward matrix-multiplication FLOPs of one token.

        Matrices that read the residual stream multiply it once for all experts, the others once for
        each.
        """
        (slot,) = self.feedforward.slots
        matrices = _matrices(self.specs(width, 1)[slot]).values()
        repeated = sum((spec.products - 1) * math.prod(spec.shape) for spec in matrices)
        adapters = sum(self.top_k * self._rank(spec) * sum(spec.shape) for spec in matrices)
        added = repeated + adapters + width * self.num_experts
        return self.feedforward.forward_flops(width) + 2 * added

    def _rank(self, spec: Spec) -> int:
        return min(self.rank, *spec.shape)


def _matrices(tree: dict[str, Spec]) -> dict[str, Spec]:
    return {name: spec for name, spec in tree.items() if len(spec.shape) == 2}


class _Memoised:
    """A matrix that computes its product with the same states once."""

    def __init__(self, weight: Leaf):
        self.weight, self.products = weight, []

    def dot(self, x: Array, einsum: str) -> Array:
        for states, product in self.products:
            if states is x:
                return product
        product = dot(x, self.weight, einsum)
        self.products.append((x, product))
        return product


@dataclasses.dataclass(frozen=True)
class _Adapted:
    """A matrix plus the adapter of one expert for each token; see `layers.linear.Weight`."""

    base: _Memoised
    a: Float[Array, "E D R"]
    b: Float[Array, "E R F"]
    index: Int[Array, "B T 1"]
    scale: float

    def dot(self, x: Array, einsum: str) -> Array:
        low_rank = self.scale * experts.project(x, self.index, self.a)[..., 0, :]
        return self.base.dot(x, einsum) + experts.project(low_rank, self.index, self.b)[..., 0, :]
